// Backward kernel of attention.h on the CPU.
//
// With delta_i = <d_o_i, o_i> - dlse_i and z the scaled product of query and key:
//   p_ij = e^(a_ij - lse_i)    da_ij = p_ij (<d_o_i, v_j> - delta_i)    dz_ij = da_ij (1 - (a_ij / cap)^2)
//   dv_j = sum_i p_ij d_o_i    dk_j = scale sum_i dz_ij q_i    dq_i = scale sum_j dz_ij k_j
//   dsink_h = -sum_i e^(sink_h - lse_i) delta_i
// One work item is a segment of a document's keys for one group of heads: it walks the queries that see the segment,
// owns dk and dv of its keys, and leaves its share of dq in the workspace, where shares are added in order of segments.
// Five products a tile, no atomics, and nothing depends on the number of threads.
#pragma once

#include "modules/families/attention/attention_segments.h"
#include "modules/families/attention/key_tile.h"

namespace weft {

template <class T>
class AttentionBackwardCpu {
 public:
  explicit AttentionBackwardCpu(const AttentionBackward& a)
      : a_(a), e_(a.shape), plan_(a), scale_(logit_scale(a.shape, a.options)), cap_(a.options.soft_cap > 0.0) {}

  std::size_t workspace() const {
    const std::int64_t shared = delta_size() + dq_size() + plan_.anchored * anchor_size();
    return static_cast<std::size_t>(shared + worker_count() * scratch()) * sizeof(T);
  }

  void run(T* workspace) const {
    T* delta = workspace;
    T* dq_shares = delta + delta_size();
    T* anchors = dq_shares + dq_size();
    T* scratch_begin = anchors + plan_.anchored * anchor_size();
    compute_delta(delta);
    if (a_.dsink_logit != nullptr) sink_gradient(delta);
    if (a_.dq == nullptr && a_.dk == nullptr && a_.dv == nullptr) return;
    const bool nested = omp_in_parallel();
    const auto items = static_cast<std::int64_t>(plan_.segments.size()) * e_.H_KV;
    parallel_for(items, Schedule::dynamic, [&](std::int64_t i) {
      const KeySegment& segment = plan_.segments[static_cast<std::size_t>(i / e_.H_KV)];
      T* scratch_of_thread = scratch_begin + (nested ? 0 : omp_get_thread_num()) * scratch();
      key_segment(segment, i % e_.H_KV, delta, dq_shares, anchors, scratch_of_thread);
    });
    if (a_.dq != nullptr) add_shares(dq_shares);
    add_anchors(anchors);
  }

 private:
  // Scratch of one work item.
  struct Scratch {
    T *k, *v, *dk, *dv;  // [keys of the segment][D_pad or D_V_pad]
    T *q_t, *d_o_t;      // [D][R], [D_V][R]
    T *q, *d_o, *dq;     // [R][D_pad], [R][D_V_pad], [R][D_pad]
    T *p, *dp;           // [kKeyTile][R]
    T *lse, *delta;      // [R]
  };

  std::int64_t delta_size() const { return a_.shape.T * e_.H_Q; }
  std::int64_t dq_size() const { return a_.dq == nullptr ? 0 : plan_.share_tokens * e_.H_Q * e_.D; }
  std::int64_t anchor_size() const { return e_.H_KV * (e_.D + e_.D_V); }
  std::int64_t scratch() const {
    return (2 * plan_.max_keys + e_.R) * (e_.D_pad + e_.D_V_pad) + e_.R * (e_.D + e_.D_V + e_.D_pad) +
           2 * kKeyTile * e_.R + 2 * e_.R;
  }
  Scratch carve(T* at) const {
    const auto take = [&](std::int64_t n) {
      T* p = at;
      at += n;
      return p;
    };
    Scratch s;
    s.k = take(plan_.max_keys * e_.D_pad);
    s.v = take(plan_.max_keys * e_.D_V_pad);
    s.dk = take(plan_.max_keys * e_.D_pad);
    s.dv = take(plan_.max_keys * e_.D_V_pad);
    s.q = take(e_.R * e_.D_pad);
    s.d_o = take(e_.R * e_.D_V_pad);
    s.q_t = take(e_.R * e_.D);
    s.d_o_t = take(e_.R * e_.D_V);
    s.dq = take(e_.R * e_.D_pad);
    s.p = take(kKeyTile * e_.R);
    s.dp = take(kKeyTile * e_.R);
    s.lse = take(e_.R);
    s.delta = take(e_.R);
    return s;
  }

  void compute_delta(T* delta) const {
    const auto* o = static_cast<const T*>(a_.o);
    const auto* d_o = static_cast<const T*>(a_.d_o);
    const auto* dlse = static_cast<const T*>(a_.dlse);
    parallel_blocks(delta_size(), rows_per_block(e_.D_V), [&](std::int64_t, std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        T dot = 0;
#pragma omp simd reduction(+ : dot)
        for (std::int64_t c = 0; c < e_.D_V; ++c) dot += o[i * e_.D_V + c] * d_o[i * e_.D_V + c];
        delta[i] = dlse == nullptr ? dot : dot - dlse[i];
      }
    });
  }

  void sink_gradient(const T* delta) const {
    const auto* sink = static_cast<const T*>(a_.sink_logit);
    const auto* lse = static_cast<const T*>(a_.lse);
    auto* dsink = static_cast<T*>(a_.dsink_logit);
    parallel_for(e_.H_Q, Schedule::fixed, [&](std::int64_t h) {
      double total = 0.0;
      for (std::int64_t t = 0; t < a_.shape.T; ++t) {
        const std::int64_t i = t * e_.H_Q + h;
        const T share = sink[h] == -std::numeric_limits<T>::infinity() ? T(0) : std::exp(sink[h] - lse[i]);
        total -= static_cast<double>(share) * static_cast<double>(delta[i]);
      }
      store(dsink[h], static_cast<T>(total), a_.write_dsink_logit);
    });
  }

  void key_segment(const KeySegment& segment, std::int64_t head, const T* delta, T* dq_shares, T* anchors,
                   T* scratch_begin) const {
    const AttentionDocument& document = a_.documents[segment.document];
    const Visibility see(document, a_.options);
    const Scratch s = carve(scratch_begin);
    load_keys(segment, document, see, head, s);
    for (std::int64_t begin = segment.query_begin; begin < segment.query_end; begin += e_.tokens) {
      const std::int64_t end = std::min(begin + e_.tokens, segment.query_end);
      const QueryTile q(document, e_, begin, end);
      load_queries(q, head, delta, s);
      const Visibility::Tiles tiles = see.tiles_of(q.first_position, q.last_position);
      const auto visit = [&](std::int64_t from, std::int64_t to) {
        for (std::int64_t t = std::max(from, segment.tile_begin); t < std::min(to, segment.tile_end); ++t) {
          tile_pair(TileMask(see, q, e_.G, t), q, (t - segment.tile_begin) * kKeyTile, s);
        }
      };
      visit(tiles.pin_tile, tiles.pin_tile_end);
      visit(tiles.tile, tiles.tile_end);
      if (a_.dq != nullptr) leave_share(segment, begin, q, head, s, dq_shares);
    }
    store_key_gradients(segment, document, see, head, s, anchors);
  }

  // Copies the segment's keys and clears their gradients.
  void load_keys(const KeySegment& segment, const AttentionDocument& document, const Visibility& see, std::int64_t head,
                 const Scratch& s) const {
    const auto* k = static_cast<const T*>(a_.k);
    const auto* v = static_cast<const T*>(a_.v);
    const std::int64_t keys = (segment.tile_end - segment.tile_begin) * kKeyTile;
    for (std::int64_t c = 0; c < keys; ++c) {
      const std::int64_t position = segment.tile_begin * kKeyTile + c;
      const bool own = position >= see.own_begin && position < see.own_end;
      const bool there = own || see.has_key(position);
      const std::int64_t key = own ? document.key_row + position - document.key_position : document.anchor_row;
      const std::int64_t row = there ? key * e_.H_KV + head : 0;
      pack_row(k + row * e_.D, there ? e_.D : 0, s.k + c * e_.D_pad, e_.D_pad);
      pack_row(v + row * e_.D_V, there ? e_.D_V : 0, s.v + c * e_.D_V_pad, e_.D_V_pad);
    }
    std::fill(s.dk, s.dk + keys * e_.D_pad, T(0));
    std::fill(s.dv, s.dv + keys * e_.D_V_pad, T(0));
  }

  void load_queries(const QueryTile& q, std::int64_t head, const T* delta, const Scratch& s) const {
    const auto* q_all = static_cast<const T*>(a_.q);
    const auto* d_o_all = static_cast<const T*>(a_.d_o);
    const auto* lse_all = static_cast<const T*>(a_.lse);
    pack_transposed(q_all, q, e_, head, e_.D, static_cast<T>(query_scale(a_.shape, a_.options)), s.q_t, e_.R);
    pack_transposed(d_o_all, q, e_, head, e_.D_V, T(1), s.d_o_t, e_.R);
    constexpr T kInfinity = std::numeric_limits<T>::infinity();
    for (std::int64_t r = 0; r < q.rows; ++r) {
      pack_row(query_row(q_all, q, e_, head, r, e_.D), e_.D, s.q + r * e_.D_pad, e_.D_pad);
      pack_row(query_row(d_o_all, q, e_, head, r, e_.D_V), e_.D_V, s.d_o + r * e_.D_V_pad, e_.D_V_pad);
      const T lse = *query_row(lse_all, q, e_, head, r, 1);
      // A query that sees nothing has probabilities 2^(anything - infinity) = 0.
      s.lse[r] = lse == -kInfinity ? kInfinity : lse * static_cast<T>(kLog2e);
      s.delta[r] = *query_row(delta, q, e_, head, r, 1);
    }
    for (std::int64_t r = q.rows; r < q.padded_rows; ++r) {
      s.lse[r] = kInfinity;
      s.delta[r] = T(0);
    }
    std::fill(s.dq, s.dq + q.rows * e_.D_pad, T(0));
  }

  // All that one tile of keys and one tile of queries contribute. `key` is the tile's first key in the segment.
  void tile_pair(const TileMask& mask, const QueryTile& q, std::int64_t key, const Scratch& s) const {
    if (mask.empty()) return;
    const T* k = s.k + key * e_.D_pad;
    const T* v = s.v + key * e_.D_V_pad;
    score_tile(mask, q, e_, k + mask.key_begin * e_.D_pad, e_.D_pad, s.q_t, cap_, s.p);
    // One product over the whole tile at a time, so that its right operand stays in the first cache.
    for_blocks(mask, q, [&](std::int64_t c, std::int64_t keys, RowRange panel) {
      T* dp = s.dp + c * e_.R;
      tile::product_rows<tile::Left::rows>(keys, panel.end - panel.begin, e_.D_V, v + c * e_.D_V_pad, e_.D_V_pad,
                                           s.d_o_t + panel.begin, e_.R, dp + panel.begin, e_.R, false);
      for (std::int64_t i = 0; i < keys; ++i) {
        T* p_row = s.p + (c + i) * e_.R;
        T* dp_row = dp + i * e_.R;
        if (cap_) {
          probabilities<true>(panel, s, p_row, dp_row);
        } else {
          probabilities<false>(panel, s, p_row, dp_row);
        }
        std::fill(dp_row, dp_row + panel.begin, T(0));
        std::fill(dp_row + panel.end, dp_row + q.padded_rows, T(0));
      }
    });
    // Rows beyond q.rows have probability 0 but no packed row of q and d_o.
    if (a_.dv != nullptr) {
      for_blocks(mask, q, [&](std::int64_t c, std::int64_t keys, RowRange panel) {
        tile::product_rows<tile::Left::rows>(keys, e_.D_V_pad, std::min(panel.end, q.rows) - panel.begin,
                                             s.p + c * e_.R + panel.begin, e_.R, s.d_o + panel.begin * e_.D_V_pad,
                                             e_.D_V_pad, s.dv + (key + c) * e_.D_V_pad, e_.D_V_pad, true);
      });
    }
    if (a_.dk != nullptr) {
      for_blocks(mask, q, [&](std::int64_t c, std::int64_t keys, RowRange panel) {
        tile::product_rows<tile::Left::rows>(keys, e_.D_pad, std::min(panel.end, q.rows) - panel.begin,
                                             s.dp + c * e_.R + panel.begin, e_.R, s.q + panel.begin * e_.D_pad,
                                             e_.D_pad, s.dk + (key + c) * e_.D_pad, e_.D_pad, true);
      });
    }
    if (a_.dq == nullptr) return;
    for (std::int64_t r = 0; r < q.rows; r += tile::kBlockRows) {
      const std::int64_t r_end = std::min(r + tile::kBlockRows, q.rows);
      const RowRange range = mask.keys_of(r, r_end);
      tile::product_rows<tile::Left::columns>(r_end - r, e_.D_pad, range.end - range.begin,
                                              s.dp + range.begin * e_.R + r, e_.R, k + range.begin * e_.D_pad, e_.D_pad,
                                              s.dq + r * e_.D_pad, e_.D_pad, true);
    }
  }

  // Calls f(key, keys, panel) for blocks of the tile's keys with the rows that see any of them.
  template <class F>
  void for_blocks(const TileMask& mask, const QueryTile& q, F&& f) const {
    for (std::int64_t c = mask.key_begin; c < mask.key_end; c += tile::kBlockRows) {
      const std::int64_t end = std::min(c + tile::kBlockRows, mask.key_end);
      const RowRange panel = mask.panels_of(c, end, q.padded_rows);
      f(c, end - c, panel);
    }
  }

  // One key's row of scores and of dp, in place: scores become p, dp becomes dz.
  template <bool kCap>
  void probabilities(RowRange panel, const Scratch& s, T* p_row, T* dp_row) const {
    using V = tile::Vector<T>;
    const V unit = tile::broadcast(static_cast<T>(a_.options.soft_cap * kLog2e));
    for (std::int64_t r = panel.begin; r < panel.end; r += tile::kLanes<T>) {
      const V score = tile::load(p_row + r);
      const V a = kCap ? V(score * unit) : score;
      const V p = tile::exp2(V(a - tile::load(s.lse + r)));
      V dz = p * (tile::load(dp_row + r) - tile::load(s.delta + r));
      // The score is tanh here; where it was masked it is -infinity.
      if constexpr (kCap) dz = p == T(0) ? V{} : V(dz * (T(1) - score * score));
      tile::store(p_row + r, p);
      tile::store(dp_row + r, dz);
    }
  }

  void leave_share(const KeySegment& segment, std::int64_t token, const QueryTile& q, std::int64_t head,
                   const Scratch& s, T* dq_shares) const {
    const auto scale = static_cast<T>(scale_);
    T* share = dq_shares + (segment.share_begin + token - segment.query_begin) * e_.H_Q * e_.D;
    for (std::int64_t r = 0; r < q.rows; ++r) {
      T* to = share + ((r / e_.G) * e_.H_Q + head * e_.G + r % e_.G) * e_.D;
      for (std::int64_t c = 0; c < e_.D; ++c) to[c] = scale * s.dq[r * e_.D_pad + c];
    }
  }

  void store_key_gradients(const KeySegment& segment, const AttentionDocument& document, const Visibility& see,
                           std::int64_t head, const Scratch& s, T* anchors) const {
    const auto scale = static_cast<T>(scale_);
    auto* dk_all = static_cast<T*>(a_.dk);
    auto* dv_all = static_cast<T*>(a_.dv);
    const std::int64_t base = segment.tile_begin * kKeyTile;
    const std::int64_t begin = std::max(see.own_begin, base);
    const std::int64_t end = std::min(see.own_end, segment.tile_end * kKeyTile);
    for (std::int64_t position = begin; position < end; ++position) {
      const std::int64_t row = (document.key_row + position - document.key_position) * e_.H_KV + head;
      const T* dk = s.dk + (position - base) * e_.D_pad;
      const T* dv = s.dv + (position - base) * e_.D_V_pad;
      if (dk_all != nullptr) {
        for (std::int64_t c = 0; c < e_.D; ++c) store(dk_all[row * e_.D + c], scale * dk[c], a_.write_dk);
      }
      if (dv_all != nullptr) {
        for (std::int64_t c = 0; c < e_.D_V; ++c) store(dv_all[row * e_.D_V + c], dv[c], a_.write_dv);
      }
    }
    if (document.anchor_row >= 0 && segment.tile_begin == 0) {
      T* to = anchors + segment.anchor * anchor_size() + head * (e_.D + e_.D_V);
      for (std::int64_t c = 0; c < e_.D; ++c) to[c] = scale * s.dk[c];
      std::copy(s.dv, s.dv + e_.D_V, to + e_.D);
    }
  }

  // dq of each query: the shares of all segments that see it, in order.
  void add_shares(const T* dq_shares) const {
    auto* dq = static_cast<T*>(a_.dq);
    const std::int64_t width = e_.H_Q * e_.D;
    for (std::int64_t n = 0; n < a_.document_count; ++n) {
      const auto segments = plan_.of_document(n);
      const std::int64_t row = a_.documents[n].query_row;
      parallel_blocks(a_.documents[n].query_count, rows_per_block(width),
                      [&](std::int64_t, std::int64_t begin, std::int64_t end) {
                        for (std::int64_t t = begin; t < end; ++t) {
                          T* to = dq + (row + t) * width;
                          if (a_.write_dq == Write::overwrite) std::fill(to, to + width, T(0));
                          for (const KeySegment& s : segments) {
                            if (t < s.query_begin || t >= s.query_end) continue;
                            const T* from = dq_shares + (s.share_begin + t - s.query_begin) * width;
                            for (std::int64_t c = 0; c < width; ++c) to[c] += from[c];
                          }
                        }
                      });
    }
  }

  // The anchor's gradient gathers those of all documents, in their order, after its own document has written its.
  void add_anchors(const T* anchors) const {
    for (const KeySegment& segment : plan_.segments) {
      if (segment.anchor < 0) continue;
      const std::int64_t row = a_.documents[segment.document].anchor_row;
      for (std::int64_t head = 0; head < e_.H_KV; ++head) {
        const T* from = anchors + segment.anchor * anchor_size() + head * (e_.D + e_.D_V);
        if (a_.dk != nullptr) {
          T* to = static_cast<T*>(a_.dk) + (row * e_.H_KV + head) * e_.D;
          for (std::int64_t c = 0; c < e_.D; ++c) to[c] += from[c];
        }
        if (a_.dv != nullptr) {
          T* to = static_cast<T*>(a_.dv) + (row * e_.H_KV + head) * e_.D_V;
          for (std::int64_t c = 0; c < e_.D_V; ++c) to[c] += from[e_.D + c];
        }
      }
    }
  }

  const AttentionBackward& a_;
  TileExtents e_;
  SegmentPlan plan_;
  double scale_;
  bool cap_;
};

}  // namespace weft
