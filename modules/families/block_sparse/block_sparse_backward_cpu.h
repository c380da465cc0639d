// Backward kernel of block_sparse_attention.h on the CPU. With delta_i = <d_o_i, o_i>, for every pair of a query and a
// key of a block that it chose:
//   p_ij = e^(a_ij - lse_i)    da_ij = scale p_ij (<d_o_i, v_j> - delta_i)
//   dv_j = sum_i p_ij d_o_i    dk_j = sum_i da_ij q_i    dq_i = sum_j da_ij k_j
// A work item owns a block of keys: it walks the rows that chose it, keeps dk and dv, and leaves a share of dq in each
// query's slot; shares are added in the order of slots. Five products a pair, no atomics; dk and dv of a key are sums
// in the order of queries.
#pragma once

#include "modules/families/block_sparse/block_plan.h"
#include "modules/families/block_sparse/block_sparse_tiles.h"

namespace weft::block_sparse {

template <class T>
class BackwardCpu {
 public:
  explicit BackwardCpu(const BlockSparseBackward& a)
      : a_(a),
        in_(a.in),
        e_(a.in.shape),
        plan_(a.in, a.in.shape.D),
        scale_(static_cast<T>(a.in.scale)),
        unit_(static_cast<T>(a.in.scale * kLog2e)),
        R_(tile_rows(plan_.heads_of_list())) {}

  std::size_t workspace() const {
    Carver<T> carver(nullptr);
    carve(carver);
    return static_cast<std::size_t>(carver.used() + worker_count() * scratch_size()) * sizeof(T);
  }

  void run(T* workspace) {
    Carver<T> carver(workspace);
    const Shared shared = carve(carver);
    T* const scratch = workspace + carver.used();
    compute_delta(shared.delta);
    clear(shared.dk, in_.shape.S * e_.H_KV * e_.D);
    clear(shared.dv, in_.shape.S * e_.H_KV * e_.D_V);
    for (std::int64_t begin = 0; begin < in_.shape.T; begin += plan_.slab_tokens()) {
      const std::int64_t end = std::min(begin + plan_.slab_tokens(), in_.shape.T);
      plan_.build(begin, end);
      parallel_items(static_cast<std::int64_t>(plan_.items().size()), [&](std::int64_t i, std::int64_t worker) {
        block(plan_.items()[static_cast<std::size_t>(i)], begin, shared, scratch + worker * scratch_size());
      });
      if (a_.dq != nullptr) add_shares(begin, end, shared.dq);
    }
    add_sums(shared.dk, a_.dk, a_.write_dk, in_.shape.S * e_.H_KV * e_.D);
    add_sums(shared.dv, a_.dv, a_.write_dv, in_.shape.S * e_.H_KV * e_.D_V);
  }

 private:
  struct Shared {
    T* delta;  // [T, H_Q]
    T* dq;     // [slab, H_Q, n, D]
    T* dk;     // [S, H_KV, D]: the target itself, if it is to be overwritten
    T* dv;     // [S, H_KV, D_V]
  };
  struct Scratch {
    T *k_columns, *v_columns;  // [tiles][D][kTileKeys], [tiles][D_V][kTileKeys]
    T* k;                      // [block][D_pad]
    T *dk, *dv;                // [block][D_pad], [block][D_V_pad]
    T *q, *d_o, *dq;           // [R][D_pad], [R][D_V_pad], [R][D_pad]
    T *p, *da;                 // [R][kTileKeys]
    T *lse, *delta;            // [R]
  };

  Shared carve(Carver<T>& carver) const {
    const std::int64_t keys = in_.shape.S * e_.H_KV;
    Shared s;
    s.delta = carver.take(in_.shape.T * e_.H_Q);
    s.dq = carver.take(a_.dq == nullptr ? 0 : plan_.slab_tokens() * e_.H_Q * plan_.slots() * e_.D);
    s.dk = a_.write_dk == Write::overwrite || a_.dk == nullptr ? static_cast<T*>(a_.dk) : carver.take(keys * e_.D);
    s.dv = a_.write_dv == Write::overwrite || a_.dv == nullptr ? static_cast<T*>(a_.dv) : carver.take(keys * e_.D_V);
    return s;
  }
  Scratch carve_scratch(Carver<T>& carver) const {
    const std::int64_t tiles = block_count(plan_.block_keys(), kTileKeys);
    Scratch s;
    s.k_columns = carver.take(tiles * e_.D * kTileKeys);
    s.v_columns = carver.take(tiles * e_.D_V * kTileKeys);
    s.k = carver.take(plan_.block_keys() * e_.D_pad);
    s.dk = carver.take(plan_.block_keys() * e_.D_pad);
    s.dv = carver.take(plan_.block_keys() * e_.D_V_pad);
    s.q = carver.take(R_ * e_.D_pad);
    s.d_o = carver.take(R_ * e_.D_V_pad);
    s.dq = carver.take(R_ * e_.D_pad);
    s.p = carver.take(R_ * kTileKeys);
    s.da = carver.take(R_ * kTileKeys);
    s.lse = carver.take(R_);
    s.delta = carver.take(R_);
    return s;
  }
  std::int64_t scratch_size() const {
    Carver<T> carver(nullptr);
    carve_scratch(carver);
    return carver.used();
  }

  void compute_delta(T* delta) const {
    const auto* o = static_cast<const T*>(a_.o);
    const auto* d_o = static_cast<const T*>(a_.d_o);
    const std::int64_t rows = in_.shape.T * e_.H_Q;
    parallel_blocks(rows, rows_per_block(e_.D_V), [&](std::int64_t, std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        T dot = 0;
#pragma omp simd reduction(+ : dot)
        for (std::int64_t c = 0; c < e_.D_V; ++c) dot += o[i * e_.D_V + c] * d_o[i * e_.D_V + c];
        delta[i] = dot;
      }
    });
  }

  static void clear(T* x, std::int64_t count) {
    if (x == nullptr) return;
    parallel_blocks(count, rows_per_block(1),
                    [&](std::int64_t, std::int64_t begin, std::int64_t end) { std::fill(x + begin, x + end, T(0)); });
  }

  void block(const BlockPlan::Item& item, std::int64_t slab_begin, const Shared& shared, T* scratch) const {
    Carver<T> carver(scratch);
    const Scratch s = carve_scratch(carver);
    const std::int64_t first = plan_.key_begin(item), last = plan_.key_end(item);
    const BlockSparseDocument& document = in_.documents[item.document];
    const KeyRows<T> keys(document, in_.k, in_.v, e_.H_KV, e_.D, e_.D_V, item.head);
    for (std::int64_t key = first; key < last; key += kTileKeys) {
      const std::int64_t count = std::min(kTileKeys, last - key);
      pack_columns([&](std::int64_t i) { return keys.k(key + i); }, count, e_.D, s.k_columns + (key - first) * e_.D);
      pack_columns([&](std::int64_t i) { return keys.v(key + i); }, count, e_.D_V,
                   s.v_columns + (key - first) * e_.D_V);
    }
    const std::int64_t row = (document.key_row + first) * e_.H_KV + item.head;  // of dk and dv, H_KV apart
    for (std::int64_t i = 0; i < last - first; ++i) {
      const std::int64_t at = row + i * e_.H_KV;
      pack_row(keys.k(first + i), e_.D, s.k + i * e_.D_pad, e_.D_pad);
      if (shared.dk != nullptr) pack_row(shared.dk + at * e_.D, e_.D, s.dk + i * e_.D_pad, e_.D_pad);
      if (shared.dv != nullptr) pack_row(shared.dv + at * e_.D_V, e_.D_V, s.dv + i * e_.D_V_pad, e_.D_V_pad);
    }
    const std::int64_t heads = plan_.heads_of_list();
    const auto step = static_cast<std::size_t>(tile_entries(heads));
    for (std::int64_t list = 0; list < plan_.lists_of_group(); ++list) {
      const std::span<const BlockEntry> entries = plan_.entries(item, list);
      for (std::size_t i = 0; i < entries.size(); i += step) {
        rows(entries.subspan(i, std::min(step, entries.size() - i)), item.head * e_.G + list * heads, first, last,
             slab_begin, shared, s);
      }
    }
    for (std::int64_t i = 0; i < last - first; ++i) {
      const std::int64_t at = row + i * e_.H_KV;
      if (shared.dk != nullptr) std::copy_n(s.dk + i * e_.D_pad, e_.D, shared.dk + at * e_.D);
      if (shared.dv != nullptr) std::copy_n(s.dv + i * e_.D_V_pad, e_.D_V, shared.dv + at * e_.D_V);
    }
  }

  // The heads [head, head + heads_of_list) of some entries against the keys [first, last).
  void rows(std::span<const BlockEntry> entries, std::int64_t head, std::int64_t first, std::int64_t last,
            std::int64_t slab_begin, const Shared& shared, const Scratch& s) const {
    const std::int64_t heads = plan_.heads_of_list();
    const auto count = static_cast<std::int64_t>(entries.size()) * heads;
    load_rows(entries, head, shared, s);
    std::fill(s.dq, s.dq + count * e_.D_pad, T(0));
    for (std::int64_t key = first; key < last; key += kTileKeys) {
      const std::int64_t keys = std::min(kTileKeys, last - key);
      const std::int64_t at = key - first;
      tile::product<tile::Left::rows>(count, tile::padded(keys), e_.D, s.q, e_.D_pad, s.k_columns + at * e_.D,
                                      kTileKeys, s.p, kTileKeys, false);
      tile::product<tile::Left::rows>(count, tile::padded(keys), e_.D_V, s.d_o, e_.D_V_pad, s.v_columns + at * e_.D_V,
                                      kTileKeys, s.da, kTileKeys, false);
      for (std::int64_t r = 0; r < count; ++r) {
        const std::int64_t visible = entries[static_cast<std::size_t>(r / heads)].visible;
        probabilities(r, std::clamp<std::int64_t>(visible - key, 0, keys), keys, s);
      }
      if (shared.dv != nullptr) {
        tile::product<tile::Left::columns>(keys, e_.D_V_pad, count, s.p, kTileKeys, s.d_o, e_.D_V_pad,
                                           s.dv + at * e_.D_V_pad, e_.D_V_pad, true);
      }
      if (shared.dk != nullptr) {
        tile::product<tile::Left::columns>(keys, e_.D_pad, count, s.da, kTileKeys, s.q, e_.D_pad, s.dk + at * e_.D_pad,
                                           e_.D_pad, true);
      }
      if (a_.dq != nullptr) {
        tile::product<tile::Left::rows>(count, e_.D_pad, keys, s.da, kTileKeys, s.k + at * e_.D_pad, e_.D_pad, s.dq,
                                        e_.D_pad, true);
      }
    }
    if (a_.dq == nullptr) return;
    for (std::int64_t r = 0; r < count; ++r) {
      const BlockEntry& entry = entries[static_cast<std::size_t>(r / heads)];
      const std::int64_t slot = ((entry.token - slab_begin) * e_.H_Q + head + r % heads) * plan_.slots() + entry.slot;
      std::copy_n(s.dq + r * e_.D_pad, e_.D, shared.dq + slot * e_.D);
    }
  }

  void load_rows(std::span<const BlockEntry> entries, std::int64_t head, const Shared& shared, const Scratch& s) const {
    const auto* q = static_cast<const T*>(in_.q);
    const auto* d_o = static_cast<const T*>(a_.d_o);
    const auto* lse = static_cast<const T*>(a_.lse);
    constexpr T kInfinity = std::numeric_limits<T>::infinity();
    std::int64_t r = 0;
    for (const BlockEntry& entry : entries) {
      for (std::int64_t h = 0; h < plan_.heads_of_list(); ++h, ++r) {
        const std::int64_t row = entry.token * e_.H_Q + head + h;
        pack_row(q + row * e_.D, e_.D, s.q + r * e_.D_pad, e_.D_pad);
        pack_row(d_o + row * e_.D_V, e_.D_V, s.d_o + r * e_.D_V_pad, e_.D_V_pad);
        // A query that sees nothing has probabilities 2^(anything - infinity) = 0.
        s.lse[r] = lse[row] == -kInfinity ? kInfinity : lse[row] * static_cast<T>(kLog2e);
        s.delta[r] = shared.delta[row];
      }
    }
  }

  // One row of scores and of <d_o, v>, in place: they become p and da, 0 from `bound` to `keys`.
  void probabilities(std::int64_t r, std::int64_t bound, std::int64_t keys, const Scratch& s) const {
    T* p_row = s.p + r * kTileKeys;
    T* da_row = s.da + r * kTileKeys;
    const auto lse = tile::broadcast(s.lse[r]);
    const auto delta = tile::broadcast(s.delta[r]);
    for (std::int64_t c = 0; c < bound; c += tile::kLanes<T>) {
      using V = tile::Vector<T>;
      const V p = tile::exp2(V(tile::load(p_row + c) * tile::broadcast(unit_) - lse));
      tile::store(p_row + c, p);
      tile::store(da_row + c, V(tile::broadcast(scale_) * p * (tile::load(da_row + c) - delta)));
    }
    std::fill(p_row + bound, p_row + keys, T(0));
    std::fill(da_row + bound, da_row + keys, T(0));
  }

  void add_shares(std::int64_t begin, std::int64_t end, const T* shares) const {
    const std::int64_t block = rows_per_block(e_.H_Q * plan_.slots() * e_.D);
    parallel_blocks(end - begin, block, [&](std::int64_t, std::int64_t from, std::int64_t to) {
      for (std::int64_t i = from * e_.H_Q; i < to * e_.H_Q; ++i) {
        add_share(begin * e_.H_Q + i, shares + i * plan_.slots() * e_.D);
      }
    });
  }

  // One row of dq from the shares [n, D] of its slots.
  void add_share(std::int64_t row, const T* shares) const {
    constexpr std::int64_t kStrip = 64;
    const std::int64_t used = plan_.used(row / e_.H_Q, row % e_.H_Q);
    T* dq = static_cast<T*>(a_.dq) + row * e_.D;
    for (std::int64_t c = 0; c < e_.D; c += kStrip) {
      const std::int64_t width = std::min(kStrip, e_.D - c);
      T sum[kStrip] = {};
      for (std::int64_t s = 0; s < used; ++s) {
        const T* from = shares + s * e_.D + c;
#pragma omp simd
        for (std::int64_t x = 0; x < width; ++x) sum[x] += from[x];
      }
      for (std::int64_t x = 0; x < width; ++x) store(dq[c + x], sum[x], a_.write_dq);
    }
  }

  static void add_sums(const T* sums, void* target, Write write, std::int64_t count) {
    if (target == nullptr || write == Write::overwrite) return;
    auto* to = static_cast<T*>(target);
    parallel_blocks(count, rows_per_block(1), [&](std::int64_t, std::int64_t begin, std::int64_t end) {
#pragma omp simd
      for (std::int64_t i = begin; i < end; ++i) to[i] += sums[i];
    });
  }

  const BlockSparseBackward& a_;
  const BlockSparseInputs& in_;
  Extents e_;
  BlockPlan plan_;
  T scale_, unit_;
  std::int64_t R_;
};

}  // namespace weft::block_sparse
