// Finding the keys of a tile: in rows of k and v, in cached pages, or (the tile where a cached prefix ends) in both.
#pragma once

#include "modules/families/attention/attention_tiles.h"

namespace weft {

// Keys [begin, end) of a tile; k and v point at its first position, of which only those in the range may be read.
template <class T>
struct KeyTile {
  const T* k;
  const T* v;
  std::int64_t k_stride, v_stride;
};

template <class T>
class KeySource {
 public:
  KeySource(const AttentionDocument& document, const TileExtents& e, const T* k, const T* v)
      : document_(document), e_(e), k_(k), v_(v) {}

  // The row of key `position` of head `head`, wherever it lies.
  const T* k_row(std::int64_t position, std::int64_t head) const { return row(position, head, k_, e_.D, 0); }
  const T* v_row(std::int64_t position, std::int64_t head) const {
    return row(position, head, v_, e_.D_V, e_.H_KV * kKeyTile * e_.D);
  }

  // Copies k [kKeyTile][D_pad] and v [kKeyTile][D_V_pad] of keys [begin, end) of a tile into `k_to`, `v_to`, padded
  // with zeros, unless they already lie so.
  KeyTile<T> tile(std::int64_t index, std::int64_t begin, std::int64_t end, std::int64_t head, T* k_to, T* v_to) const {
    const std::int64_t first = index * kKeyTile;
    const bool cached = first + end <= document_.cached.length;
    if (cached && e_.D_V == e_.D_V_pad) {
      return {k_row(first, head), v_row(first, head), e_.D, e_.D_V};
    }
    for (std::int64_t c = begin; c < end; ++c) {
      pack_row(k_row(first + c, head), e_.D, k_to + c * e_.D_pad, e_.D_pad);
      pack_row(v_row(first + c, head), e_.D_V, v_to + c * e_.D_V_pad, e_.D_V_pad);
    }
    return {k_to, v_to, e_.D_pad, e_.D_V_pad};
  }

 private:
  const T* row(std::int64_t position, std::int64_t head, const T* rows, std::int64_t width,
               std::int64_t page_offset) const {
    if (position < document_.cached.length) {
      const auto* page = static_cast<const T*>(document_.cached.page(static_cast<std::int32_t>(position / kKeyTile)));
      return page + page_offset + (head * kKeyTile + position % kKeyTile) * width;
    }
    const bool anchor = document_.anchor_row >= 0 && position < document_.key_position;
    const std::int64_t key = anchor ? document_.anchor_row : document_.key_row + position - document_.key_position;
    return rows + (key * e_.H_KV + head) * width;
  }

  const AttentionDocument& document_;
  const TileExtents& e_;
  const T* k_;
  const T* v_;
};

}  // namespace weft
