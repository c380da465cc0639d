// Which tiles of keys a tile of queries visits, and which queries see which keys, on the device.
//
// A query at position p sees the keys at positions j <= p of [key_begin, key_end) with p - j < window or j < sinks, and
// the anchor. A query tile visits, in this order, its own tiles from the last to the first, tiles of sink tokens before
// those, and the anchor, as a tile with one key.
#pragma once

#include "modules/families/attention/attention_work.h"

namespace weft::attention_cuda {

// Options in the form that kernels use.
struct Sight {
  std::int32_t window;  // 2^30 if there is none
  std::int32_t sinks;

  explicit Sight(const AttentionOptions& options)
      : window(options.window > 0 && options.window < (1 << 30) ? options.window : 1 << 30),
        sinks(options.sink_tokens) {}
  __device__ bool sees(std::int32_t query, std::int32_t key) const {
    return key <= query && (query - key < window || key < sinks);
  }
};

struct KeyVisit {
  std::int32_t row;         // of k, v at `position`
  std::int32_t position;    // of the tile's first key
  std::int32_t begin, end;  // positions of keys that are the document's, inside the tile
  bool partial;             // some query of the tile does not see some key of it

  __device__ bool whole() const { return begin == position && end == position + kKeyRows; }
};

class KeyWalk {
 public:
  __device__ KeyWalk(const AttentionQueryTile& tile, const Sight& sight) : tile_(tile), sight_(sight) {
    const std::int32_t last = tile.position + tile.count - 1;
    const std::int32_t low = max(tile.key_begin, tile.position - sight.window + 1);
    const std::int32_t high = min(last, tile.key_end - 1);
    own_begin_ = own_end_ = 1 << 30;  // none
    pin_begin_ = pin_end_ = 0;
    if (low <= high) {
      own_begin_ = low / kKeyRows;
      own_end_ = high / kKeyRows + 1;
    }
    const std::int32_t pin_last = min(min(sight.sinks, tile.key_end), last + 1) - 1;
    if (tile.key_begin <= pin_last) {
      pin_begin_ = tile.key_begin / kKeyRows;
      pin_end_ = pin_last / kKeyRows + 1;
      if (own_begin_ < own_end_) pin_end_ = min(pin_end_, own_begin_);
      pin_end_ = max(pin_end_, pin_begin_);
    }
  }
  __device__ std::int32_t count() const { return own_count() + pin_count() + (tile_.anchor_row >= 0 ? 1 : 0); }

  __device__ KeyVisit visit(std::int32_t i) const {
    if (i >= own_count() + pin_count()) return {tile_.anchor_row, 0, 0, 1, true};
    const std::int32_t index = i < own_count() ? own_end_ - 1 - i : pin_end_ - 1 - (i - own_count());
    const std::int32_t position = index * kKeyRows;
    KeyVisit v;
    v.row = tile_.key_shift + position;
    v.position = position;
    v.begin = max(position, tile_.key_begin);
    v.end = min(position + kKeyRows, tile_.key_end);
    v.partial = !v.whole() || position + kKeyRows - 1 > tile_.position ||
                tile_.position + tile_.count - 1 - position >= sight_.window;
    return v;
  }

  // How many tiles of keys this tile of queries visits before the one at `position`, in ascending order with the anchor
  // first: the turn of that tile in adding to dq.
  __device__ std::int32_t turn(std::int32_t position, bool anchor) const {
    if (anchor) return 0;
    const std::int32_t index = position / kKeyRows;
    const std::int32_t before = tile_.anchor_row >= 0 ? 1 : 0;
    if (index >= own_begin_) return before + pin_count() + index - own_begin_;
    return before + index - pin_begin_;
  }

 private:
  __device__ std::int32_t own_count() const { return own_end_ - own_begin_; }
  __device__ std::int32_t pin_count() const { return pin_end_ - pin_begin_; }

  const AttentionQueryTile& tile_;
  const Sight& sight_;
  std::int32_t own_begin_, own_end_, pin_begin_, pin_end_;
};

}  // namespace weft::attention_cuda
