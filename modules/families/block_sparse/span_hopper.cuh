// What the kernels for keys that stand for spans share on Hopper: 128 query rows in two warpgroups, the heads of a
// group for neighbouring queries of one document, walk all keys that one of them sees, a tile at a time, by wgmma.
#pragma once

#include "autograd/tile/async_copy.cuh"
#include "autograd/tile/wgmma.cuh"
#include "modules/families/block_sparse/block_sparse_mma.cuh"

namespace weft::block_sparse {

inline constexpr int kSpanWarpgroups = 2;
inline constexpr int kSpanThreads = kSpanWarpgroups * tile::kWarpgroup;
inline constexpr int kSpanRows = 64 * kSpanWarpgroups;

// The group's heads fill the rows of a warpgroup with whole queries.
inline bool span_tiles_fit(std::int64_t G) {
  return G > 0 && 64 % G == 0;
}

// Tiles of queries of one document; `tiles.first_block` counts them.
struct SpanTile {
  bool any;
  int G;
  int token, tokens;  // first query, and how many
  int position;       // of the first query
  int key_row;        // of the document's first key
  int keys;           // that the last query sees

  // Row r of the tile: query r / G, head r % G.
  __device__ bool valid(int r) const { return r / G < tokens; }
  __device__ int seen(KeySpan span, int r) const { return valid(r) ? span_count(span, position + r / G + 1) : 0; }
  __device__ std::int64_t row(int H_Q, int first_head, int r) const {
    return static_cast<std::int64_t>(token + r / G) * H_Q + first_head + r % G;
  }
};
__device__ inline SpanTile span_tile(const RowTables& keys, const RowTables& tiles, int G, int index) {
  SpanTile t{};
  if (index < 0 || index >= tiles.first_block[tiles.N]) return t;
  const int queries = kSpanRows / G;
  const int n = last_at_most(tiles.first_block, tiles.N, index);
  t.any = true;
  t.G = G;
  t.position = (index - tiles.first_block[n]) * queries;
  t.token = tiles.cu_seqlens[n] + t.position;
  t.tokens = min(queries, tiles.cu_seqlens[n + 1] - t.token);
  t.key_row = keys.key_row[n];
  t.keys = span_count(keys.span, t.position + t.tokens);
  return t;
}

// The forward pass; `tiles` counts tiles of kSpanRows / G queries.
void span_forward_hopper(const BlockSparseForward& args, const RowTables& keys, const RowTables& tiles,
                         const Stream& stream);

// Starts copies of rows [first, first + Rows) of keys (or values) `step` elements apart; zero from `count` on.
template <int Rows, int D>
__device__ inline void fetch_keys(tile::SharedTile<Rows, D>& to, const bf16* from, std::int64_t step, int first,
                                  int count) {
  constexpr int kChunks = D / 8;
#pragma unroll
  for (int i = static_cast<int>(threadIdx.x); i < Rows * kChunks; i += kSpanThreads) {
    const int r = i / kChunks, c = i % kChunks * 8;
    const bool valid = first + r < count;
    tile::copy16_async(&to.chunk(r, c), from + (valid ? first + r : 0) * step + c, valid);
  }
}

// The query rows of all warpgroups.
template <int D>
__device__ inline void fetch_queries(tile::SharedTile<64, D> (&to)[kSpanWarpgroups], const bf16* q, const SpanTile& t,
                                     int H_Q, int first_head) {
  constexpr int kChunks = D / 8;
  for (int i = static_cast<int>(threadIdx.x); i < kSpanRows * kChunks; i += kSpanThreads) {
    const int r = i / kChunks, c = i % kChunks * 8;
    const bool valid = t.valid(r);
    tile::copy16_async(&to[r / 64].chunk(r % 64, c), q + (valid ? t.row(H_Q, first_head, r) * D + c : 0), valid);
  }
}

}  // namespace weft::block_sparse
