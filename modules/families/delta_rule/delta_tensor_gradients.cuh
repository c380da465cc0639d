// What the pairs of a chunk give to the gradients of queries, keys and decays: 16 rows and 16 channels for a warp.
//
// dg is a suffix sum of rows minus columns, in which every pair that lies behind a token must cancel: both sides are
// taken from the same rounded operands, so that what is left over is the rounding of fp32 sums.
#pragma once

#include "modules/families/delta_rule/delta_tensor.cuh"

namespace weft::delta_tensor::gradients {

using tile::add;
using tile::at;
using tile::for_pair;
using tile::put;

inline constexpr int kThreads = 512;
inline constexpr int kChannels = 32, kTiles = kChannels / 8;  // of a warp
inline constexpr int kLdSums = kD + 4;

struct Columns {  // everything along the value columns
  bf16 d_o[kC * kLd], U[kC * kLd], dR[kC * kLd];
  bf16 S[kD * kLd], dS[kD * kLd];
};
struct Channels {  // everything along the key channels
  LevelTiles tiles;
  float log_sums[kC * kLdSums];
};
struct DecaySums {  // at the end
  float rows[kC * kLdSums];
  float totals[kBlocks][kD];
  float heads[kC][kBlocks];
};
struct Shared {
  union {
    Columns columns;
    Channels channels;
    DecaySums sums;
  };
  bf16 dP[kC * kSquareLd], dB[kC * kSquareLd];  // strictly lower
  BlockDecays decays;
  float diagonal[kC];  // of dP
  float beta[kC], alive[kD];
  float halves[2 * kBlocks][kD];
  // Products with the states, out of the registers' way: each thread's own U dS'^T and half of its dR S^T.
  float updates[kTiles * 4][kThreads];
  float values[kTiles * 2][kThreads];
  float left[kBlocks][kD];  // what the keys of a block leave in the exit state, for dg
};

using WarpTile = FragmentC[kTiles];

// What a warp gathers for 16 rows and 16 channels.
struct Gathered {
  FragmentC dq[2], dk[2];
  FragmentC rows[2];  // dg is suffix sums of these
};

// Rows [row, row + 16) of both score gradients times rows of keys [key, key + 16 steps), two tiles of channels.
__device__ inline void multiply_rows(const Shared& shared, int row, const bf16* keys, int key, int score, int steps,
                                     int channel, FragmentC (&query)[2], FragmentC (&reader)[2]) {
  for (int s = 0; s < steps; ++s) {
    const FragmentA dP = load_a(SharedMatrix(shared.dP, kSquareLd), row, score + 16 * s);
    const FragmentA dB = load_a(SharedMatrix(shared.dB, kSquareLd), row, score + 16 * s);
    FragmentB b[2];
    load_b(b, SharedMatrix(keys, kLd), key + 16 * s, channel);
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      mma(query[t], dP, b[t]);
      mma(reader[t], dB, b[t]);
    }
  }
}
// The transposes: columns [row, row + 16) of the score gradients times rows of queries and keys.
__device__ inline void multiply_columns(const Shared& shared, int row, const bf16* queries, int query, const bf16* keys,
                                        int key, int score, int steps, int channel, FragmentC (&writer)[2]) {
  for (int s = 0; s < steps; ++s) {
    const FragmentA dP = load_a_transposed(SharedMatrix(shared.dP, kSquareLd), score + 16 * s, row);
    const FragmentA dB = load_a_transposed(SharedMatrix(shared.dB, kSquareLd), score + 16 * s, row);
    FragmentB q[2], k[2];
    load_b(q, SharedMatrix(queries, kLd), query + 16 * s, channel);
    load_b(k, SharedMatrix(keys, kLd), key + 16 * s, channel);
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      mma(writer[t], dP, q[t]);
      mma(writer[t], dB, k[t]);
    }
  }
}

// The pairs of a block whose decays have no common reference: one by one.
__device__ __forceinline__ void single_pairs(const Shared& shared, const ChunkRows& chunk, const bf16* q, const bf16* k,
                                             float scale, int block, int channel, Gathered& to) {
  const float* sums = shared.channels.tiles.sums(block);
  const int first = block * kBlock;
  for_pair(channel, [&](int t, int first_register, int r, int first_channel) {
    if (first + r >= chunk.n) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int e = first_register + half, x = first_channel + half;
      const float own = sums[r * kD + x];
      float query = 0.0f, reader = 0.0f, writer = 0.0f;
#pragma unroll 1
      for (int other = 0; other < kBlock && first + other < chunk.n; ++other) {
        if (other == r) continue;
        const int i = first + max(r, other), j = first + min(r, other), at = (first + other) * chunk.ld_key + x;
        const float decay = tile::exp2_fast(-fabsf(own - sums[other * kD + x]));
        const float dP = decay * tile::to_float(shared.dP[i * kSquareLd + j]);
        const float dB = decay * tile::to_float(shared.dB[i * kSquareLd + j]);
        const float key = tile::to_float(k[at]);
        if (other < r) {
          query += dP * key;
          reader += dB * key;
        } else {
          writer += dB * key + dP * scale * tile::to_float(q[at]);
        }
      }
      const int at = (first + r) * chunk.ld_key + x;
      to.dq[t].x[e] += scale * query;
      to.dk[t].x[e] += reader + writer;
      to.rows[t].x[e] += scale * tile::to_float(q[at]) * query + tile::to_float(k[at]) * (reader - writer);
    }
  });
}

// All pairs of the chunk, for two tiles of the warp's channels.
__device__ __forceinline__ void pair_gradients(const Shared& shared, const ChunkRows& chunk, const bf16* q,
                                               const bf16* k, float scale, int block, int channel, Gathered& to) {
  const LevelTiles& tiles = shared.channels.tiles;
  const BlockDecays& decays = shared.decays;
  const float* log_sums = shared.channels.log_sums + block * kBlock * kLdSums;
  const int row = block * kBlock;
  const auto from_start = [&](int r, int x) { return load_pair(log_sums + r * kLdSums + x); };
  const auto to_end = [&](int r, int x) { return load_pair(&decays.log_total[block][x]) - from_start(r, x); };
  // As rows: `factor` brings the products to the row itself; queries and keys are those the products with P and A had.
  const auto take_rows = [&](const FragmentC(&query)[2], const FragmentC(&reader)[2], const bf16* queries,
                             int query_row, const bf16* keys, int key_row, auto&& factor) {
    for_pair(channel, [&](int t, int e, int r, int x) {
      const float2 f = factor(r, x), own_query = at(query[t], e), own_reader = at(reader[t], e);
      add(to.dq[t], e, scale * (f * own_query));
      add(to.dk[t], e, f * own_reader);
      add(to.rows[t], e,
          load_pair(queries + (query_row + r) * kLd + x) * own_query +
              load_pair(keys + (key_row + r) * kLd + x) * own_reader);
    });
  };
  const auto take_columns = [&](const FragmentC(&writer)[2], const bf16* keys, int key_row, auto&& factor) {
    for_pair(channel, [&](int t, int e, int r, int x) {
      const float2 own = at(writer[t], e);
      add(to.dk[t], e, factor(r, x) * own);
      add(to.rows[t], e, -1.0f * (load_pair(keys + (key_row + r) * kLd + x) * own));
    });
  };
  {
    FragmentC query[2] = {}, other[2] = {};
    if (block >= 2) {
      multiply_rows(shared, row, tiles.k32, 0, 0, 2, channel, query, other);
      take_rows(query, other, tiles.q, row, tiles.k32, row, [&](int r, int x) {
        const float2 f = exp2_pair(from_start(r, x));
        return block == 3 ? f * load_pair(&decays.total[2][x]) : f;
      });
    } else {
      multiply_columns(shared, row, tiles.q, 32, tiles.k32, 32, 32, 2, channel, other);
      take_columns(other, tiles.k32, row, [&](int r, int x) {
        const float2 f = exp2_pair(to_end(r, x));
        return block == 0 ? f * load_pair(&decays.total[1][x]) : f;
      });
    }
  }
  {
    FragmentC query[2] = {}, other[2] = {};
    if (block % 2 == 1) {
      multiply_rows(shared, row, tiles.k16, row - kBlock, row - kBlock, 1, channel, query, other);
      take_rows(query, other, tiles.q, query_row16(block), tiles.k16, row,
                [&](int r, int x) { return exp2_pair(from_start(r, x)); });
    } else {
      multiply_columns(shared, row, tiles.q, query_row16(block + 1), tiles.k16, row + kBlock, row + kBlock, 1, channel,
                       other);
      take_columns(other, tiles.k16, row, [&](int r, int x) { return exp2_pair(to_end(r, x)); });
    }
  }
  if (decays.unbounded[block]) return single_pairs(shared, chunk, q, k, scale, block, channel, to);
  const bf16 *as_rows = tiles.diagonal[block][0], *as_columns = tiles.diagonal[block][1],
             *queries = tiles.diagonal[block][2];
  FragmentC query[2] = {}, reader[2] = {}, writer[2] = {};
  multiply_rows(shared, row, as_columns, 0, row, 1, channel, query, reader);
  take_rows(query, reader, queries, 0, as_rows, 0,
            [&](int r, int x) { return exp2_pair(from_start(r, x) - from_start(0, x)); });
  multiply_columns(shared, row, queries, 0, as_rows, 0, row, 1, channel, writer);
  take_columns(writer, as_columns, 0, [&](int r, int x) { return exp2_pair(from_start(0, x) - from_start(r, x)); });
}

}  // namespace weft::delta_tensor::gradients
