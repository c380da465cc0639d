// Which tiles of keys a tile of queries visits, and which queries see which keys, on the device.
//
// A query at position p sees the document's keys at positions j <= p with p - j < window or j < sinks, and the anchor.
// A query tile visits, in this order, its own tiles from the last to the first, tiles of sink tokens before those, and
// the anchor, as a tile with one key.
#pragma once

#include "modules/families/attention/attention_work.h"

namespace weft::attention_cuda {

// The same value in every lane, said in a way that the compiler believes: branches on it do not diverge, and what
// follows from it (descriptors of operands) is computed once for a warp.
__device__ inline int uniform(int x) {
  return __shfl_sync(0xffffffffu, x, 0);
}

// Options in the form that kernels use.
struct Sight {
  std::int32_t window;  // 2^30 if there is none
  std::int32_t sinks;

  explicit Sight(const AttentionOptions& options)
      : window(options.window > 0 && options.window < (1 << 30) ? options.window : 1 << 30),
        sinks(options.sink_tokens) {}
  __device__ bool sees(std::int32_t query, std::int32_t key) const {
    return (key <= query) & ((query - key < window) | (key < sinks));
  }
};

// Columns of a tile that one query sees: [0, sinks) up to `end`, and [begin, end).
struct SeenColumns {
  std::int32_t begin, end, sinks;

  // Of a tile whose first key, at `position`, is column 0 and that has `count` keys.
  __device__ SeenColumns(const Sight& sight, std::int32_t query, std::int32_t position, std::int32_t count)
      : begin(query - sight.window + 1 - position),
        end(min(query + 1 - position, count)),
        sinks(sight.sinks - position) {}
  __device__ bool has(std::int32_t column) const { return (column < end) & ((column >= begin) | (column < sinks)); }
};

struct alignas(16) KeyVisit {
  std::int32_t row;       // of k, v of the tile's first key
  std::int32_t position;  // of that key
  std::int32_t count;     // of keys that are the document's
  std::int32_t partial;   // some query of the tile does not see some key of it
};

// Tiles of KeyRows keys.
template <int KeyRows>
class KeyWalk {
 public:
  __device__ KeyWalk(const AttentionQueryTile& tile, const Sight& sight) {
    const std::int32_t last = tile.position + tile.count - 1;
    const std::int32_t low = max(0, tile.position - sight.window + 1 - tile.key_begin);
    const std::int32_t high = min(last, tile.key_end - 1) - tile.key_begin;
    own_begin_ = own_end_ = 1 << 30;  // none
    pin_end_ = 0;
    if (low <= high) {
      own_begin_ = low / KeyRows;
      own_end_ = high / KeyRows + 1;
    }
    const std::int32_t pin_last = min(min(sight.sinks, tile.key_end), last + 1) - 1 - tile.key_begin;
    if (pin_last >= 0) pin_end_ = min(pin_last / KeyRows + 1, own_begin_);
    anchor_ = tile.anchor_row >= 0 ? 1 : 0;
  }
  __device__ std::int32_t count() const { return own_end_ - own_begin_ + pin_end_ + anchor_; }

  __device__ KeyVisit visit(std::int32_t i, const AttentionQueryTile& tile, const Sight& sight) const {
    const std::int32_t own = own_end_ - own_begin_;
    if (i >= own + pin_end_) return {tile.anchor_row, -1, 1, 1};
    const std::int32_t offset = (i < own ? own_end_ - 1 - i : pin_end_ - 1 - (i - own)) * KeyRows;
    const std::int32_t position = tile.key_begin + offset;
    const std::int32_t count = min(KeyRows, tile.key_end - position);
    const bool partial = count < KeyRows || position + KeyRows - 1 > tile.position ||
                         tile.position + tile.count - 1 - position >= sight.window;
    return {tile.key_row + offset, position, count, partial ? 1 : 0};
  }

  // How many tiles of keys this tile of queries visits before the one at `position`, in ascending order with the anchor
  // first: the turn of that tile in adding to dq.
  __device__ std::int32_t turn(std::int32_t position, bool anchor, const AttentionQueryTile& tile) const {
    if (anchor) return 0;
    const std::int32_t index = (position - tile.key_begin) / KeyRows;
    return anchor_ + (index >= own_begin_ ? pin_end_ + index - own_begin_ : index);
  }

 private:
  std::int32_t own_begin_, own_end_, pin_end_, anchor_;
};

}  // namespace weft::attention_cuda
