// What the forward and the backward CPU kernel share: the extents of their tiles, packing, and the score tile.
//
// A query tile holds `tokens` consecutive tokens of a document for the G heads of one group: row r is head r mod G of
// token r / G, and rows are padded to R. A key tile holds kKeyTile positions. Scores lie transposed, [key][row], so
// that softmax statistics are plain vectors over rows. Scores are in units where probabilities are powers of 2.
#pragma once

#include <omp.h>

#include "autograd/parallel_for.h"
#include "autograd/vec_math.h"
#include "modules/families/attention/tile_math.h"
#include "modules/families/attention/visibility.h"

namespace weft {

// Query rows a tile aims at: a multiple of both kPad and tile::kBlockRows.
inline constexpr std::int64_t kQueryRows = 96;
inline constexpr double kLog2e = 1.44269504088896340736;

struct TileExtents {
  std::int64_t H_Q, H_KV, G, D, D_V;
  std::int64_t D_pad, D_V_pad;
  std::int64_t tokens;  // of a query tile
  std::int64_t R;       // padded rows of a query tile

  explicit TileExtents(const AttentionShape& s)
      : H_Q(s.H_Q),
        H_KV(s.H_KV),
        G(s.H_Q / s.H_KV),
        D(s.D),
        D_V(s.D_V),
        D_pad(tile::padded(s.D)),
        D_V_pad(tile::padded(s.D_V)),
        tokens(std::max<std::int64_t>(1, kQueryRows / G)),
        R(tile::padded(tokens * G)) {}
};

inline double logit_scale(const AttentionShape& shape, const AttentionOptions& options) {
  return options.scale != 0.0 ? options.scale : 1.0 / std::sqrt(static_cast<double>(shape.D));
}
// What queries are multiplied by before the product: logits come out in powers of 2, or as the argument of tanh.
inline double query_scale(const AttentionShape& shape, const AttentionOptions& options) {
  const double scale = logit_scale(shape, options);
  return options.soft_cap > 0.0 ? scale / options.soft_cap : scale * kLog2e;
}

// Threads that a kernel called from here may run on: shares of scratch in its workspace.
inline std::int64_t worker_count() {
  return omp_in_parallel() ? 1 : omp_get_max_threads();
}

// Rows of one query tile.
struct QueryTile {
  std::int64_t token;           // row of q of its first token
  std::int64_t tokens;          // in the tile
  std::int64_t rows;            // tokens * G
  std::int64_t padded_rows;     // multiple of kPad
  std::int64_t first_position;  // of its first token
  std::int64_t last_position;

  QueryTile(const AttentionDocument& document, const TileExtents& e, std::int64_t begin, std::int64_t end)
      : token(document.query_row + begin),
        tokens(end - begin),
        rows(tokens * e.G),
        padded_rows(tile::padded(rows)),
        first_position(document.query_position + begin),
        last_position(first_position + tokens - 1) {}
};

// Address of row r of a [T, H_Q, width] tensor for key/value head `head`.
template <class T>
inline T* query_row(T* base, const QueryTile& q, const TileExtents& e, std::int64_t head, std::int64_t r,
                    std::int64_t width) {
  return base + ((q.token + r / e.G) * e.H_Q + head * e.G + r % e.G) * width;
}

// x [rows][width] of a query tile -> transposed [width][ld], times `scale`; rows up to padded_rows are zero.
template <class T>
void pack_transposed(const T* base, const QueryTile& q, const TileExtents& e, std::int64_t head, std::int64_t width,
                     T scale, T* to, std::int64_t ld) {
  constexpr std::int64_t kBlock = 8;
  for (std::int64_t r0 = 0; r0 < q.padded_rows; r0 += kBlock) {
    const T* row[kBlock];
    for (std::int64_t i = 0; i < kBlock; ++i) {
      row[i] = r0 + i < q.rows ? query_row(base, q, e, head, r0 + i, width) : nullptr;
    }
    std::int64_t c = 0;
    for (; r0 + kBlock <= q.rows && c + kBlock <= width; c += kBlock) {
      tile::transpose_block(row, scale, to + c * ld + r0, ld);
      for (const T*& p : row) p += kBlock;
    }
    for (std::int64_t rest = 0; c < width; ++c, ++rest) {
      for (std::int64_t i = 0; i < kBlock; ++i) to[c * ld + r0 + i] = row[i] == nullptr ? T(0) : row[i][rest] * scale;
    }
  }
}

// x [rows][width] -> [rows][pad], the padding zero.
template <class T>
inline void pack_row(const T* from, std::int64_t width, T* to, std::int64_t pad) {
  std::copy(from, from + width, to);
  std::fill(to + width, to + pad, T(0));
}

// Rows [begin, end) of a query tile that see a key at `position`.
struct RowRange {
  std::int64_t begin, end;
};
inline RowRange rows_of_key(const Visibility& see, const QueryTile& q, std::int64_t G, std::int64_t position) {
  const Visibility::Queries who = see.queries_of(position);
  const std::int64_t first = std::clamp<std::int64_t>(who.first - q.first_position, 0, q.tokens);
  const std::int64_t last =
      who.last <= q.first_position ? 0 : std::min<std::int64_t>(who.last - 1 - q.first_position, q.tokens - 1) + 1;
  return first < last ? RowRange{first * G, last * G} : RowRange{0, 0};
}

// Which keys of a tile which rows of a query tile see.
class TileMask {
 public:
  bool full;
  std::int64_t key_begin, key_end;  // all visible keys of the tile lie in between
  RowRange rows[kKeyTile];          // for each of those keys; set unless full

  TileMask(const Visibility& see, const QueryTile& q, std::int64_t G, std::int64_t tile_index)
      : full(see.tile_is_full(tile_index, q.first_position, q.last_position)),
        key_begin(0),
        key_end(kKeyTile),
        see_(see),
        tile_(tile_index),
        first_position_(q.first_position),
        tokens_(q.tokens),
        G_(G) {
    if (full) return;
    const RowRange hull = keys_of(0, q.rows);
    key_begin = hull.begin;
    key_end = hull.end;
    for (std::int64_t c = key_begin; c < key_end; ++c) rows[c] = rows_of_key(see, q, G, tile_index * kKeyTile + c);
  }
  // Panels of kPad rows [begin, end) that contain all rows which see a key of [key, last_key).
  RowRange panels_of(std::int64_t key, std::int64_t last_key, std::int64_t padded_rows) const {
    if (full) return {0, padded_rows};
    RowRange panel{padded_rows, 0};
    for (std::int64_t c = key; c < last_key; ++c) {
      if (rows[c].begin == rows[c].end) continue;
      panel.begin = std::min(panel.begin, rows[c].begin / tile::kPad * tile::kPad);
      panel.end = std::max(panel.end, tile::padded(rows[c].end));
    }
    if (panel.begin >= panel.end) panel = {0, 0};
    return panel;
  }
  bool empty() const { return key_begin >= key_end; }
  // Keys [begin, end) that contain all that rows [row, row_end) see; rows of the padding see nothing.
  RowRange keys_of(std::int64_t row, std::int64_t row_end) const {
    if (full) return {0, kKeyTile};
    const std::int64_t last = std::min((row_end - 1) / G_, tokens_ - 1);
    if (row / G_ > last) return {0, 0};
    const Visibility::Keys keys = see_.keys_of(tile_, first_position_ + row / G_, first_position_ + last);
    return keys.begin < keys.end ? RowRange{keys.begin - tile_ * kKeyTile, keys.end - tile_ * kKeyTile}
                                 : RowRange{0, 0};
  }

 private:
  const Visibility& see_;
  std::int64_t tile_, first_position_, tokens_, G_;
};

// Scores of one tile: to[key][row] = <k_key, q_row> in the units above, soft-capped if `cap` (tanh alone, then), with
// -infinity where a row does not see a key. Keys outside [key_begin, key_end) are left alone. k points at key_begin's
// row; rows are `k_stride` apart.
template <class T>
void score_tile(const TileMask& mask, const QueryTile& q, const TileExtents& e, const T* k, std::int64_t k_stride,
                const T* q_transposed, bool cap, T* to) {
  for (std::int64_t c = mask.key_begin; c < mask.key_end; c += tile::kBlockRows) {
    const std::int64_t c_end = std::min(c + tile::kBlockRows, mask.key_end);
    const RowRange panel = mask.panels_of(c, c_end, q.padded_rows);
    if (panel.begin < panel.end) {
      tile::product_rows<tile::Left::rows>(c_end - c, panel.end - panel.begin, e.D, k + (c - mask.key_begin) * k_stride,
                                           k_stride, q_transposed + panel.begin, e.R, to + c * e.R + panel.begin, e.R,
                                           false);
    }
    for (std::int64_t i = c; i < c_end; ++i) {
      T* row = to + i * e.R;
      if (cap) {
#pragma omp simd
        for (std::int64_t r = panel.begin; r < panel.end; ++r) row[r] = fast_tanh(row[r]);
      }
      if (mask.full) continue;
      constexpr T kHidden = -std::numeric_limits<T>::infinity();
      std::fill(row, row + mask.rows[i].begin, kHidden);
      std::fill(row + mask.rows[i].end, row + q.padded_rows, kHidden);
    }
  }
}

}  // namespace weft
