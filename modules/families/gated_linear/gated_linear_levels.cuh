// What decays per key channel do inside a chunk, for the tensor cores: queries and keys times decays to and from
// boundaries between rows, so that the pairs of two blocks of rows are products. By 256 or 512 threads.
//
// C = 64 rows of a chunk in 4 blocks of 16, D key channels. Decays are sums of g in base 2. The boundaries 16, 32 and
// 48 lie between the blocks; a block on the diagonal takes its own first row as the reference if none of its channels
// decays by more than 2^-kReach from there, otherwise its pairs are summed one by one in fp32. A reference in the
// middle would have smaller factors, but later tokens would change how earlier ones are rounded.
#pragma once

#include "autograd/tile/pairs.cuh"
#include "modules/families/gated_linear/gated_linear_cuda.h"

namespace weft::channels {

using tile::bf16;
using tile::exp2_pair;
using tile::FragmentA;
using tile::FragmentB;
using tile::FragmentC;
using tile::SharedMatrix;
using tile::operator*;
using tile::operator+;
using tile::operator-;
using tile::fragment_column;
using tile::fragment_row;
using tile::load_pair;
using tile::store_pair;

inline constexpr int kC = 64, kBlock = 16, kBlocks = kC / kBlock;
// Log decay, base 2, from a block's first row to its last up to which factors and their products stay finite in bf16
// and fp32.
inline constexpr float kReach = 110.0f;
// Nothing is left below; sums of larger numbers would lose the digits of the small ones.
inline constexpr float kNothingLeft = -1000.0f;

// A chunk of a head: its first elements in [T, H, width]; rows are `stride` apart.
template <int D>
struct ChunkRows {
  const bf16 *q, *k;
  const float* g;
  int n, stride;

  __device__ ChunkRows(const GatedLinearProblem& p, const Chunk& chunk, int h) {
    const std::int64_t at = (static_cast<std::int64_t>(chunk.begin) * p.H + h) * D;
    q = static_cast<const bf16*>(p.q) + at;
    k = static_cast<const bf16*>(p.k) + at;
    g = static_cast<const float*>(p.g) + at;
    n = chunk.end - chunk.begin;
    stride = static_cast<int>(p.H) * D;
  }
};

// Rows of queries are scaled. Rows of the tiles of a boundary are in the order of the chunk's.
template <int D>
struct LevelTiles {
  static constexpr int kLd = D + 8;
  bf16 q32[2 * kBlock * kLd], k32[2 * kBlock * kLd];  // queries of blocks 2 and 3, keys of 0 and 1: boundary 32
  bf16 q16[2 * kBlock * kLd], k16[2 * kBlock * kLd];  // queries of blocks 1 and 3, keys of 0 and 2: boundaries 16, 48
  // Of each block: queries and keys; where decays inside a block are too fast for that, the sums of log decays [16][D]
  // in fp32 instead.
  bf16 diagonal[kBlocks][2][kBlock * kLd];

  __device__ float* sums(int block) { return reinterpret_cast<float*>(diagonal[block]); }
  __device__ const float* sums(int block) const { return reinterpret_cast<const float*>(diagonal[block]); }
};
template <int D>
struct BlockDecays {
  float log_first[kBlocks][D];  // of the first rows
  float log_total[kBlocks][D];
  float total[kBlocks][D];  // 2^log_total
  float parts[kC / 4][D];   // of threads with parts of a block
  int unbounded[kBlocks];   // whether some channel decays by more than the first row can serve as a reference for
};

// What a chunk makes before the states are known.
template <int D>
struct Operands {
  bf16 q[kC * D];  // scale Q e^G
  bf16 k[kC * D];  // K e^(G_n - G)
};

// Fills `tiles` and `decays`, by kC / kRows x D / 2 threads: kRows rows of two channels each. decays.unbounded is zero
// on entry. log_sums (unless null), rows ld_sums apart: sums of g from the start of a row's block to the row.
// q_entry, k_exit (unless null), rows D apart: scale Q e^G and K e^(G_n - G). A barrier must follow.
template <int D, int kRows>
__device__ __forceinline__ void make_levels(const ChunkRows<D>& chunk, float scale, LevelTiles<D>& tiles,
                                            BlockDecays<D>& decays, float* log_sums, int ld_sums, bf16* q_entry,
                                            bf16* k_exit) {
  static_assert(kBlock % kRows == 0 && kRows >= 4, "a part of a block");
  constexpr int kParts = kBlock / kRows, kLd = LevelTiles<D>::kLd;
  const int thread = static_cast<int>(threadIdx.x), x = thread % (D / 2) * 2, part = thread / (D / 2);
  const int first = part * kRows, block = first / kBlock, row = first % kBlock;
  // Loads are not under conditions, so that all of them are under way at once: rows from n on read the last row.
  const auto place = [&](int r) { return min(first + r, chunk.n - 1) * chunk.stride + x; };  // fits into 31 bits
  float2 from_start[kRows];
  std::uint32_t keys[kRows], queries[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    from_start[r] = load_pair(chunk.g + place(r));
    keys[r] = *reinterpret_cast<const std::uint32_t*>(chunk.k + place(r));
    queries[r] = *reinterpret_cast<const std::uint32_t*>(chunk.q + place(r));
  }
  float2 sum{0.0f, 0.0f};
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const auto log2_decay = [&](float g) {
      return first + r < chunk.n ? (g < kNothingLeft ? kNothingLeft : g) * tile::kLog2e : 0.0f;  // keeps NaN
    };
    from_start[r] = sum = sum + float2{log2_decay(from_start[r].x), log2_decay(from_start[r].y)};
  }
  float2 total = sum, reference = from_start[0];
  if constexpr (kParts > 1) {
    if (row == 0) *reinterpret_cast<float2*>(&decays.log_first[block][x]) = reference;
    *reinterpret_cast<float2*>(&decays.parts[part][x]) = sum;
    __syncthreads();
    reference = load_pair(&decays.log_first[block][x]);
    float2 before{0.0f, 0.0f};
    total = {0.0f, 0.0f};
#pragma unroll
    for (int other = 0; other < kParts; ++other) {
      if (other == part % kParts) before = total;
      total = total + load_pair(&decays.parts[block * kParts + other][x]);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) from_start[r] = before + from_start[r];
  }
  const float2 reach = reference - from_start[kRows - 1];
  if (!(reach.x <= kReach && reach.y <= kReach)) decays.unbounded[block] = 1;
  if (row == 0) {
    *reinterpret_cast<float2*>(&decays.log_total[block][x]) = total;
    *reinterpret_cast<float2*>(&decays.total[block][x]) = exp2_pair(total);
  }
  __syncthreads();
  const auto total_of = [&](int b) { return load_pair(&decays.total[b][x]); };
  float2 entry{scale, scale}, exit{1.0f, 1.0f}, outer{1.0f, 1.0f};
  if (q_entry != nullptr) {
#pragma unroll 1
    for (int b = 0; b < block; ++b) entry = entry * total_of(b);
#pragma unroll 1
    for (int b = block + 1; b < kBlocks; ++b) exit = exit * total_of(b);
  }
  if (block == 0) outer = total_of(1);
  if (block == 3) outer = total_of(2);
  const bool unbounded = decays.unbounded[block] != 0;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int i = first + r, own = row + r;
    const float2 key = tile::unpack(i < chunk.n ? keys[r] : 0u);
    const float2 query = tile::unpack(i < chunk.n ? queries[r] : 0u);
    const float2 start = exp2_pair(from_start[r]), end = exp2_pair(total - from_start[r]);
    const float2 columns = key * end, rows = scale * (query * start);
    const int at16 = (block / 2 * kBlock + own) * kLd + x, at32 = (block % 2 * kBlock + own) * kLd + x;
    if (block % 2 == 0) {
      store_pair(&tiles.k16[at16], columns);
    } else {
      store_pair(&tiles.q16[at16], rows);
    }
    if (block < 2) {
      store_pair(&tiles.k32[at32], outer * columns);
    } else {
      store_pair(&tiles.q32[at32], outer * rows);
    }
    if (unbounded) {
      *reinterpret_cast<float2*>(tiles.sums(block) + own * D + x) = from_start[r];
    } else {
      const float2 up = exp2_pair(from_start[r] - reference), down = exp2_pair(reference - from_start[r]);
      store_pair(&tiles.diagonal[block][0][own * kLd + x], scale * (query * up));
      store_pair(&tiles.diagonal[block][1][own * kLd + x], key * down);
    }
    if (log_sums != nullptr) *reinterpret_cast<float2*>(log_sums + i * ld_sums + x) = from_start[r];
    if (q_entry == nullptr) continue;
    store_pair(&q_entry[i * D + x], entry * (query * start));
    store_pair(&k_exit[i * D + x], exit * columns);
  }
}

}  // namespace weft::channels
