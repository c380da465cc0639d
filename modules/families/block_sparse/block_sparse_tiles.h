// What the CPU kernels of the family share: extents, finding keys, packing, and rows of a score tile.
//
// A row tile holds the heads of some (token, list) entries: up to R query rows [R, D]. A key tile holds up to
// kTileKeys keys of one block. Scores lie as [row][key], kTileKeys apart.
#pragma once

#include "autograd/carver.h"
#include "modules/families/attention/attention_tiles.h"
#include "modules/families/block_sparse/block_sparse_attention.h"

namespace weft::block_sparse {

inline constexpr std::int64_t kTileKeys = 64;
inline constexpr std::int64_t kTileRows = 96;  // a multiple of tile::kBlockRows

// parallel_for over items of uneven work; f(i, worker) with worker in [0, worker_count()).
template <class F>
void parallel_items(std::int64_t n, F&& f) {
  const bool nested = omp_in_parallel();
  parallel_for(n, Schedule::dynamic, [&](std::int64_t i) { f(i, nested ? 0 : omp_get_thread_num()); });
}

// Widths, and the rows of a row tile.
struct Extents {
  std::int64_t H_Q, H_KV, G, D, D_V, D_pad, D_V_pad;

  explicit Extents(const BlockSparseShape& s)
      : H_Q(s.H_Q),
        H_KV(s.H_KV),
        G(s.H_Q / s.H_KV),
        D(s.D),
        D_V(s.D_V),
        D_pad(tile::padded(s.D)),
        D_V_pad(tile::padded(s.D_V)) {}
};

// Rows of a tile whose entries have `heads` heads each.
inline std::int64_t tile_rows(std::int64_t heads) {
  return std::max(kTileRows, heads);
}
inline std::int64_t tile_entries(std::int64_t heads) {
  return std::max<std::int64_t>(1, kTileRows / heads);
}

// The keys and values of one head of one document, wherever they lie.
template <class T>
class KeyRows {
 public:
  KeyRows(const BlockSparseDocument& document, const void* k, const void* v, std::int64_t H_KV, std::int64_t D,
          std::int64_t D_V, std::int64_t head)
      : document_(document),
        k_(static_cast<const T*>(k)),
        v_(static_cast<const T*>(v)),
        H_KV_(H_KV),
        D_(D),
        D_V_(D_V),
        head_(head) {}

  const T* k(std::int64_t key) const {
    if (document_.cached.pages == nullptr) return k_ + row(key) * D_;
    return page(key) + (head_ * kKeyTile + key % kKeyTile) * D_;
  }
  const T* v(std::int64_t key) const {
    if (document_.cached.pages == nullptr) return v_ + row(key) * D_V_;
    return page(key) + H_KV_ * kKeyTile * D_ + (head_ * kKeyTile + key % kKeyTile) * D_V_;
  }

 private:
  std::int64_t row(std::int64_t key) const { return (document_.key_row + key) * H_KV_ + head_; }
  const T* page(std::int64_t key) const {
    return static_cast<const T*>(document_.cached.page(static_cast<std::int32_t>(key / kKeyTile)));
  }

  const BlockSparseDocument& document_;
  const T *k_, *v_;
  std::int64_t H_KV_, D_, D_V_, head_;
};

// Rows row_of(0), ..., row_of(count - 1) of `width` elements, as columns: to [width][kTileKeys], zero up to a multiple
// of kPad columns.
template <class T, class RowOf>
void pack_columns(const RowOf& row_of, std::int64_t count, std::int64_t width, T* to) {
  constexpr std::int64_t kBlock = 8;
  for (std::int64_t i0 = 0; i0 < tile::padded(count); i0 += kBlock) {
    const T* row[kBlock];
    for (std::int64_t i = 0; i < kBlock; ++i) row[i] = i0 + i < count ? row_of(i0 + i) : nullptr;
    std::int64_t c = 0;
    for (; i0 + kBlock <= count && c + kBlock <= width; c += kBlock) {
      tile::transpose_block(row, T(1), to + c * kTileKeys + i0, kTileKeys);
      for (const T*& p : row) p += kBlock;
    }
    for (std::int64_t rest = 0; c < width; ++c, ++rest) {
      for (std::int64_t i = 0; i < kBlock; ++i) to[c * kTileKeys + i0 + i] = row[i] == nullptr ? T(0) : row[i][rest];
    }
  }
}

// Running statistics of rows, relative to powers of 2: top the largest logit, mass the sum of 2^(logit - top).
template <class T>
struct Statistics {
  T top = -std::numeric_limits<T>::infinity();
  T mass = 0;
};

// The largest of `count` scores times `unit`; count a multiple of the vector.
template <class T>
[[gnu::always_inline]] inline T row_top(const T* score, std::int64_t count, T unit) {
  using V = tile::Vector<T>;
  V top = tile::broadcast(-std::numeric_limits<T>::infinity());
  for (std::int64_t c = 0; c < count; c += tile::kLanes<T>) {
    const V s = tile::load(score + c) * tile::broadcast(unit);
    top = s > top ? s : top;
  }
  T largest = top[0];
  for (int i = 1; i < tile::kLanes<T>; ++i) largest = top[i] > largest ? top[i] : largest;
  return largest;
}

// One row of a score tile of which `bound` keys are visible: scores become 2^(score unit - top), those beyond the bound
// 0 up to `keys`; `s` moves on. Returns what earlier sums are to be multiplied by.
template <class T>
T softmax_row(T* score, std::int64_t bound, std::int64_t keys, T unit, Statistics<T>& s) {
  using V = tile::Vector<T>;
  constexpr T kHidden = -std::numeric_limits<T>::infinity();
  const std::int64_t count = tile::padded(bound);
  std::fill(score + bound, score + count, kHidden);
  const T after = std::max(s.top, row_top(score, count, unit));
  const T origin = after == kHidden ? T(0) : after;
  const T factor = tile::exp2(tile::broadcast(T(s.top - origin)))[0];
  V total{};
  for (std::int64_t c = 0; c < count; c += tile::kLanes<T>) {
    const V p = tile::exp2(V(tile::load(score + c) * tile::broadcast(unit) - tile::broadcast(origin)));
    tile::store(score + c, p);
    total += p;
  }
  if (count < keys) std::fill(score + count, score + keys, T(0));
  T sum = total[0];
  for (int i = 1; i < tile::kLanes<T>; ++i) sum += total[i];
  s.mass = s.mass * factor + sum;
  s.top = after;
  return factor;
}

// Natural log of the denominator.
template <class T>
T log_sum(const Statistics<T>& s) {
  return s.mass == T(0) ? -std::numeric_limits<T>::infinity() : s.top * static_cast<T>(1.0 / kLog2e) + std::log(s.mass);
}

}  // namespace weft::block_sparse
