// Which keys the queries of one document see, as ranges of positions: what tiled kernels ask.
//
// Visible to a query at position p: the pinned keys [pin_begin, pin_end) up to p, and the keys [own_begin, own_end)
// within (p - window, p].
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "modules/families/attention/attention.h"

namespace weft {

struct Visibility {
  std::int64_t own_begin, own_end;
  std::int64_t pin_begin, pin_end;
  std::int64_t window;

  Visibility(const AttentionDocument& document, const AttentionOptions& options) {
    own_begin = document.cached.length > 0 ? 0 : document.key_position;
    own_end = document.key_position + document.key_count;
    window = options.window > 0 ? options.window : std::numeric_limits<std::int32_t>::max();
    const bool anchored = document.anchor_row >= 0;
    pin_begin = anchored ? 0 : own_begin;
    pin_end = std::max<std::int64_t>(anchored ? 1 : 0, std::min<std::int64_t>(options.sink_tokens, own_end));
    if (pin_end <= pin_begin) pin_begin = pin_end = 0;
  }

  bool has_key(std::int64_t position) const {
    return (position >= own_begin && position < own_end) || (position >= pin_begin && position < pin_end);
  }

  // Queries [first, last) by position that see the key; empty if it is not there.
  struct Queries {
    std::int64_t first, last;
  };
  Queries queries_of(std::int64_t key) const {
    if (key >= pin_begin && key < pin_end) return {key, std::numeric_limits<std::int64_t>::max()};
    if (key >= own_begin && key < own_end) return {key, key + window};
    return {0, 0};
  }

  // Tiles that queries at positions [first, last] must visit: pinned [pin_tile, pin_tile_end), then [tile, tile_end).
  struct Tiles {
    std::int64_t pin_tile, pin_tile_end, tile, tile_end;
  };
  Tiles tiles_of(std::int64_t first, std::int64_t last) const {
    Tiles t{0, 0, 0, 0};
    const std::int64_t low = std::max(own_begin, first - window + 1);
    const std::int64_t high = std::min(last, own_end - 1);
    if (low <= high) {
      t.tile = low / kKeyTile;
      t.tile_end = high / kKeyTile + 1;
    }
    const std::int64_t pin_last = std::min(pin_end, last + 1) - 1;
    if (pin_begin <= pin_last) {
      t.pin_tile = pin_begin / kKeyTile;
      t.pin_tile_end = pin_last / kKeyTile + 1;
      if (t.tile < t.tile_end) t.pin_tile_end = std::min(t.pin_tile_end, t.tile);
    }
    return t;
  }

  // Smallest range [begin, end) of positions of the tile that holds all keys which queries at positions [first, last]
  // see; begin >= end if there is none.
  struct Keys {
    std::int64_t begin, end;
  };
  Keys keys_of(std::int64_t tile, std::int64_t first, std::int64_t last) const {
    const std::int64_t tile_begin = tile * kKeyTile;
    const std::int64_t tile_end = tile_begin + kKeyTile;
    const Keys own{std::max({own_begin, first - window + 1, tile_begin}), std::min({own_end, last + 1, tile_end})};
    const Keys pinned{std::max(pin_begin, tile_begin), std::min({pin_end, last + 1, tile_end})};
    if (pinned.begin >= pinned.end) return own;
    if (own.begin >= own.end) return pinned;
    return {std::min(own.begin, pinned.begin), std::max(own.end, pinned.end)};
  }

  // True if every key of the tile is visible to all queries at positions [first, last].
  bool tile_is_full(std::int64_t tile, std::int64_t first, std::int64_t last) const {
    const std::int64_t begin = tile * kKeyTile;
    const std::int64_t end = begin + kKeyTile;
    if (end - 1 > first) return false;
    return (begin >= pin_begin && end <= pin_end) ||
           (begin >= std::max(own_begin, last - window + 1) && end <= own_end);
  }
};

}  // namespace weft
