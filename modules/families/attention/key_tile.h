// Finding the keys of a tile: in rows of k and v, in cached pages, or (the tile where a cached prefix ends) in both.
#pragma once

#include "modules/families/attention/attention_tiles.h"

namespace weft {

// Some keys of a tile, one after the other; k and v point at the first of them.
template <class T>
struct KeyTile {
  const T* k;
  const T* v;
  std::int64_t k_stride, v_stride;
};

// k [S, H_KV, D] and v [S, H_KV, D_V] by head and padded: [H_KV, S, D_pad] and [H_KV, S, D_V_pad].
template <class T>
struct PackedKeys {
  std::int64_t S;
  T* k;
  T* v;

  static std::int64_t size(std::int64_t S, const TileExtents& e) { return S * e.H_KV * (e.D_pad + e.D_V_pad); }
  PackedKeys(std::int64_t rows, const TileExtents& e, T* memory)
      : S(rows), k(memory), v(memory + rows * e.H_KV * e.D_pad) {}

  void pack(const T* k_from, const T* v_from, const TileExtents& e) const {
    parallel_blocks(S, rows_per_block(e.H_KV * e.D), [&](std::int64_t, std::int64_t begin, std::int64_t end) {
      for (std::int64_t row = begin; row < end; ++row) {
        for (std::int64_t h = 0; h < e.H_KV; ++h) {
          pack_row(k_from + (row * e.H_KV + h) * e.D, e.D, k + (h * S + row) * e.D_pad, e.D_pad);
          pack_row(v_from + (row * e.H_KV + h) * e.D_V, e.D_V, v + (h * S + row) * e.D_V_pad, e.D_V_pad);
        }
      }
    });
  }
};

// The keys of one head of one document.
template <class T>
class KeySource {
 public:
  KeySource(const AttentionDocument& document, const TileExtents& e, const PackedKeys<T>& packed, std::int64_t head)
      : document_(document), e_(e), packed_(packed), head_(head) {}

  // Keys at positions [begin, end), which lie in one tile. Copied into `k_to` [kKeyTile, D_pad] and `v_to` [kKeyTile,
  // D_V_pad] only where they do not already lie together.
  KeyTile<T> keys(std::int64_t begin, std::int64_t end, T* k_to, T* v_to) const {
    if (begin >= document_.key_position && begin >= document_.cached.length) {
      return {packed_k(begin), packed_v(begin), e_.D_pad, e_.D_V_pad};
    }
    if (end <= document_.cached.length && e_.D_V == e_.D_V_pad) {
      return {cached_k(begin), cached_v(begin), e_.D, inside() ? e_.D : e_.D_V};
    }
    for (std::int64_t position = begin; position < end; ++position) {
      T* k_row = k_to + (position - begin) * e_.D_pad;
      T* v_row = v_to + (position - begin) * e_.D_V_pad;
      if (position < document_.cached.length) {
        pack_row(cached_k(position), e_.D, k_row, e_.D_pad);
        pack_row(cached_v(position), e_.D_V, v_row, e_.D_V_pad);
      } else {
        pack_row(packed_k(position), e_.D_pad, k_row, e_.D_pad);
        pack_row(packed_v(position), e_.D_V_pad, v_row, e_.D_V_pad);
      }
    }
    return {k_to, v_to, e_.D_pad, e_.D_V_pad};
  }

 private:
  const T* page(std::int64_t position) const {
    return static_cast<const T*>(document_.cached.page(static_cast<std::int32_t>(position / kKeyTile)));
  }
  const T* cached_k(std::int64_t position) const {
    return page(position) + (head_ * kKeyTile + position % kKeyTile) * e_.D;
  }
  bool inside() const { return document_.cached.values == CachedValues::inside_keys; }
  const T* cached_v(std::int64_t position) const {
    if (inside()) return cached_k(position);
    return page(position) + e_.H_KV * kKeyTile * e_.D + (head_ * kKeyTile + position % kKeyTile) * e_.D_V;
  }
  const T* packed_k(std::int64_t position) const { return packed_.k + (head_ * packed_.S + row(position)) * e_.D_pad; }
  const T* packed_v(std::int64_t position) const {
    return packed_.v + (head_ * packed_.S + row(position)) * e_.D_V_pad;
  }
  // Positions before the document's own keys are the anchor's.
  std::int64_t row(std::int64_t position) const {
    return position < document_.key_position ? document_.anchor_row
                                             : document_.key_row + position - document_.key_position;
  }

  const AttentionDocument& document_;
  const TileExtents& e_;
  const PackedKeys<T>& packed_;
  std::int64_t head_;
};

}  // namespace weft
