// Forward kernel of attention.h on the CPU: tiles of queries against tiles of keys with an online softmax, one work
// item for each query tile of each group of heads.
#pragma once

#include "modules/families/attention/key_tile.h"

namespace weft {

template <class T>
class AttentionForwardCpu {
 public:
  explicit AttentionForwardCpu(const AttentionForward& a)
      : a_(a), e_(a.shape), cap_(a.options.soft_cap > 0.0), unit_(cap_ ? a.options.soft_cap * kLog2e : 1.0) {}

  std::size_t workspace() const {
    return static_cast<std::size_t>(PackedKeys<T>::size(a_.shape.S, e_) + worker_count() * scratch()) * sizeof(T);
  }

  void run(T* workspace) const {
    struct Item {
      std::int64_t document, begin, end;
    };
    std::vector<Item> items;
    for (std::int64_t n = 0; n < a_.document_count; ++n) {
      const std::int64_t count = a_.documents[n].query_count;
      for (std::int64_t begin = 0; begin < count; begin += e_.tokens) {
        items.push_back({n, begin, std::min(begin + e_.tokens, count)});
      }
    }
    const PackedKeys<T> keys(a_.shape.S, e_, workspace);
    keys.pack(static_cast<const T*>(a_.k), static_cast<const T*>(a_.v), e_);
    T* const scratch_begin = workspace + PackedKeys<T>::size(a_.shape.S, e_);
    const bool nested = omp_in_parallel();
    const auto tiles = static_cast<std::int64_t>(items.size());
    // Head by head, while its keys are in cache. Late queries see most keys: they go first.
    parallel_for(tiles * e_.H_KV, Schedule::dynamic, [&](std::int64_t i) {
      const Item& item = items[static_cast<std::size_t>(tiles - 1 - i % tiles)];
      T* scratch_of_thread = scratch_begin + (nested ? 0 : omp_get_thread_num()) * scratch();
      query_tile(a_.documents[item.document], item.begin, item.end, i / tiles, keys, scratch_of_thread);
    });
  }

 private:
  std::int64_t scratch() const {
    return e_.D * e_.R + kKeyTile * (e_.R + e_.D_pad + e_.D_V_pad) + e_.R * (e_.D_V_pad + 3);
  }

  void query_tile(const AttentionDocument& document, std::int64_t begin, std::int64_t end, std::int64_t head,
                  const PackedKeys<T>& packed, T* scratch) const {
    const QueryTile q(document, e_, begin, end);
    const Visibility see(document, a_.options);
    const KeySource<T> keys(document, e_, packed, head);
    T* score = scratch;
    T* q_transposed = score + kKeyTile * e_.R;
    T* sum = q_transposed + e_.D * e_.R;  // [R, D_V_pad] unnormalised output
    T* k_copy = sum + e_.R * e_.D_V_pad;
    T* v_copy = k_copy + kKeyTile * e_.D_pad;
    T* top = v_copy + kKeyTile * e_.D_V_pad;  // [R] running maximum
    T* mass = top + e_.R;                     // [R] running denominator, relative to top
    T* rescale = mass + e_.R;                 // [R]

    pack_transposed(static_cast<const T*>(a_.q), q, e_, head, e_.D, static_cast<T>(query_scale(a_.shape, a_.options)),
                    q_transposed, e_.R);
    start(q, head, top, mass);
    std::fill(sum, sum + q.rows * e_.D_V_pad, T(0));

    const auto visit = [&](std::int64_t tile_index) {
      const TileMask mask(see, q, e_.G, tile_index);
      if (mask.empty()) return;
      const std::int64_t first = tile_index * kKeyTile;
      const KeyTile<T> kv = keys.keys(first + mask.key_begin, first + mask.key_end, k_copy, v_copy);
      score_tile(mask, q, e_, kv.k, kv.k_stride, q_transposed, cap_, score);
      softmax_update(mask, q, score, top, mass, rescale);
      for (std::int64_t r = 0; r < q.rows; ++r) {
        if (rescale[r] == T(1)) continue;
        for (std::int64_t c = 0; c < e_.D_V_pad; ++c) sum[r * e_.D_V_pad + c] *= rescale[r];
      }
      for (std::int64_t r = 0; r < q.rows; r += tile::kBlockRows) {
        const std::int64_t r_end = std::min(r + tile::kBlockRows, q.rows);
        const RowRange range = mask.keys_of(r, r_end);
        if (range.begin == range.end) continue;
        tile::product_rows<tile::Left::columns>(
            r_end - r, e_.D_V_pad, range.end - range.begin, score + range.begin * e_.R + r, e_.R,
            kv.v + (range.begin - mask.key_begin) * kv.v_stride, kv.v_stride, sum + r * e_.D_V_pad, e_.D_V_pad, true);
      }
    };
    const Visibility::Tiles tiles = see.tiles_of(q.first_position, q.last_position);
    for (std::int64_t t = tiles.pin_tile; t < tiles.pin_tile_end; ++t) visit(t);
    for (std::int64_t t = tiles.tile; t < tiles.tile_end; ++t) visit(t);
    finish(q, head, sum, top, mass);
  }

  // Statistics before any key: those of the sink logit alone, if there is one.
  void start(const QueryTile& q, std::int64_t head, T* top, T* mass) const {
    const auto* sink = static_cast<const T*>(a_.sink_logit);
    for (std::int64_t r = 0; r < q.padded_rows; ++r) {
      const T b =
          sink == nullptr ? -std::numeric_limits<T>::infinity() : sink[head * e_.G + r % e_.G] * static_cast<T>(kLog2e);
      const bool none = b == -std::numeric_limits<T>::infinity();
      top[r] = b;
      mass[r] = none ? T(0) : T(1);
    }
  }

  // Turns scores into 2^(score - top) and updates top and mass; earlier sums are to be multiplied by `rescale`.
  void softmax_update(const TileMask& mask, const QueryTile& q, T* score, T* top, T* mass, T* rescale) const {
    using V = tile::Vector<T>;
    constexpr T kHidden = -std::numeric_limits<T>::infinity();
    const V unit = tile::broadcast(static_cast<T>(unit_));
    for (std::int64_t r = 0; r < q.padded_rows; r += tile::kLanes<T>) {
      const RowRange seen = mask.keys_of(r, r + tile::kLanes<T>);
      const V before = tile::load(top + r);
      V after = before;
      for (std::int64_t c = seen.begin; c < seen.end; ++c) {
        const V s = tile::load(score + c * e_.R + r) * unit;
        after = s > after ? s : after;
      }
      // A row that has seen nothing keeps -infinity, and subtracts 0 so that its powers are 0.
      const V origin = after == kHidden ? V{} : after;
      const V factor = tile::exp2(V(before - origin));
      V total{};
      for (std::int64_t c = mask.key_begin; c < seen.begin; ++c) tile::store(score + c * e_.R + r, V{});
      for (std::int64_t c = seen.begin; c < seen.end; ++c) {
        T* at = score + c * e_.R + r;
        const V p = tile::exp2(V(tile::load(at) * unit - origin));
        tile::store(at, p);
        total += p;
      }
      for (std::int64_t c = std::max(seen.end, mask.key_begin); c < mask.key_end; ++c) {
        tile::store(score + c * e_.R + r, V{});
      }
      tile::store(top + r, after);
      tile::store(mass + r, V(tile::load(mass + r) * factor + total));
      tile::store(rescale + r, factor);
    }
  }

  void finish(const QueryTile& q, std::int64_t head, const T* sum, const T* top, const T* mass) const {
    for (std::int64_t r = 0; r < q.rows; ++r) {
      T* o = query_row(static_cast<T*>(a_.o), q, e_, head, r, e_.D_V);
      T* lse = query_row(static_cast<T*>(a_.lse), q, e_, head, r, 1);
      const bool nothing = mass[r] == T(0);
      const T inverse = nothing ? T(0) : T(1) / mass[r];
      for (std::int64_t c = 0; c < e_.D_V; ++c) o[c] = sum[r * e_.D_V_pad + c] * inverse;
      *lse = nothing ? -std::numeric_limits<T>::infinity() : top[r] * static_cast<T>(1.0 / kLog2e) + std::log(mass[r]);
    }
  }

  const AttentionForward& a_;
  TileExtents e_;
  bool cap_;
  double unit_;  // score units of one unit of the product
};

}  // namespace weft
