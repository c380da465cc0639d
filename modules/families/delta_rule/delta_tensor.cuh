// What the delta rule's kernels for tensor cores share: bf16, key and value heads of width 128, chunks of 64 tokens.
//
// C = 64 rows of a chunk in 4 blocks of 16, D = 128 channels. Decays are sums of g in base 2. Tiles in shared memory
// are bf16, row-major, rows padded by 8 elements against bank conflicts.
#pragma once

#include "autograd/tile/async_copy.cuh"
#include "autograd/tile/pairs.cuh"
#include "modules/families/delta_rule/delta_chunk.cuh"

namespace weft::delta_tensor {

using tile::bf16;
using tile::copy_rows_async;
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

inline constexpr int kD = 128, kC = 64, kBlock = 16, kBlocks = kC / kBlock;
inline constexpr int kLd = kD + 8, kSquareLd = kC + 8;  // rows of tiles

// What a chunk of a value head makes before the states are known; [chunk_count, H] of them in the workspace.
struct Operands {
  bf16 k_entry[kC * kD];  // K e^G
  bf16 k_exit[kC * kD];   // K e^(G_n - G)
  bf16 q_entry[kC * kD];  // scale Q e^G
  bf16 B[kC * kC];        // A (I + diag(beta) A)^-1
  bf16 P[kC * kC];
  float total[kD];  // e^(G_n)
  float beta[kC];
};

// Queries and keys times decays to and from the boundaries between blocks, and inside the blocks on the diagonal to and
// from their first rows: a reference further down would let later tokens change how earlier ones are rounded.
struct LevelTiles {
  bf16 k16[kC * kLd];  // boundaries of 16 rows between the blocks 0 | 1 and 2 | 3
  bf16 k32[kC * kLd];  // the boundary in the middle of the chunk
  bf16 q[kC * kLd];    // rows of block 1 and, at 0, of block 3 for 16 rows; blocks 2 and 3 for the middle
  // Of each block: keys as rows, keys as columns, queries; where decays inside a block are too fast for that, the sums
  // of log decays [16][D] in fp32 instead.
  bf16 diagonal[kBlocks][3][kBlock * kLd];

  __device__ float* sums(int block) { return reinterpret_cast<float*>(diagonal[block]); }
  __device__ const float* sums(int block) const { return reinterpret_cast<const float*>(diagonal[block]); }
};
// Row of LevelTiles::q of the queries of block 1 or 3 for boundaries of 16 rows.
__device__ inline int query_row16(int block) {
  return block == 1 ? kBlock : 0;
}

struct BlockDecays {
  float log_first[kBlocks][kD];  // of the first rows
  float log_total[kBlocks][kD];
  float total[kBlocks][kD];  // 2^log_total
  int unbounded[kBlocks];    // whether some channel decays by more than the first row can serve as a reference for
};
// Log decay, base 2, from a block's first row to its last up to which factors and their products stay finite in bf16
// and fp32: 15 steps of a gate bounded by -5 are 108.2.
inline constexpr float kReach = 110.0f;
// Nothing is left below; sums of larger numbers would lose the digits of the small ones.
inline constexpr float kNothingLeft = -1000.0f;

__device__ inline float log2_decay(float g) {
  return (g < kNothingLeft ? kNothingLeft : g) * tile::kLog2e;  // keeps NaN
}
// Log decays of kRows rows and two channels. Loads are not under conditions, so that all of them are under way at once:
// rows from n on read the last row and become zero.
template <int kRows>
__device__ __forceinline__ void log2_decays(const ChunkRows& chunk, int first, int x, float2 (&decays)[kRows]) {
  if (chunk.g == nullptr) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) decays[r] = {0.0f, 0.0f};
    return;
  }
  if (chunk.channel_step == 0) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) decays[r].x = decays[r].y = chunk.g[min(first + r, chunk.n - 1) * chunk.ld_g];
  } else {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      decays[r] = *reinterpret_cast<const float2*>(chunk.g + min(first + r, chunk.n - 1) * chunk.ld_g + x);
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const bool valid = first + r < chunk.n;
    decays[r] = {valid ? log2_decay(decays[r].x) : 0.0f, valid ? log2_decay(decays[r].y) : 0.0f};
  }
}

// Fills `tiles` and `decays` of one chunk, by kC / kRows x D / 2 threads: kRows rows, a block or half of one, of two
// channels each. decays.unbounded is zero on entry. halves: [2 kBlocks][D] where kRows is half a block. log_sums
// (unless null), rows ld_sums apart: sums of g from the start of a row's block to the row. operands (unless null): the
// keys and queries of the walks over the states. A barrier must follow.
template <int kRows>
__device__ __forceinline__ void make_levels(const ChunkRows& chunk, const bf16* q, const bf16* k, float scale,
                                            LevelTiles& tiles, BlockDecays& decays, float (*halves)[kD],
                                            float* log_sums, int ld_sums, Operands* operands) {
  static_assert(kRows == kBlock || kRows == kBlock / 2, "a block or half of one");
  constexpr bool kHalves = kRows < kBlock;
  const int thread = static_cast<int>(threadIdx.x), x = thread % (kD / 2) * 2, part = thread / (kD / 2);
  const int first = part * kRows, block = first / kBlock, row = first % kBlock;
  float2 from_start[kRows], sum{0.0f, 0.0f};
  log2_decays(chunk, first, x, from_start);
#pragma unroll
  for (int r = 0; r < kRows; ++r) from_start[r] = sum = sum + from_start[r];
  float2 total = sum, reference = from_start[0];
  if (row == 0) *reinterpret_cast<float2*>(&decays.log_first[block][x]) = reference;
  if constexpr (kHalves) {
    *reinterpret_cast<float2*>(&halves[part][x]) = sum;
    __syncthreads();
    reference = load_pair(&decays.log_first[block][x]);
    const float2 middle = load_pair(&halves[block * 2][x]), before = row == 0 ? float2{0.0f, 0.0f} : middle;
    total = middle + load_pair(&halves[block * 2 + 1][x]);
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
  float2 entry{1.0f, 1.0f}, exit{1.0f, 1.0f}, outer{1.0f, 1.0f};
  if (operands != nullptr) {
    for (int b = 0; b < block; ++b) entry = entry * total_of(b);
    for (int b = block + 1; b < kBlocks; ++b) exit = exit * total_of(b);
  }
  if (block == 0) outer = total_of(1);
  if (block == 3) outer = total_of(2);
  const bool unbounded = decays.unbounded[block] != 0;
  // Loads ahead of the stores, behind which the compiler would leave them; as many as registers last.
  constexpr int kAhead = kHalves ? 4 : kRows;
  std::uint32_t keys[kAhead], queries_ahead[kAhead];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (r % kAhead == 0) {
#pragma unroll
      for (int ahead = 0; ahead < kAhead; ++ahead) {
        const int at = min(first + r + ahead, chunk.n - 1) * chunk.ld_key + x;
        keys[ahead] = *reinterpret_cast<const std::uint32_t*>(k + at);
        queries_ahead[ahead] = *reinterpret_cast<const std::uint32_t*>(q + at);
      }
    }
    const int i = first + r, own = row + r;
    const float2 key = tile::unpack(i < chunk.n ? keys[r % kAhead] : 0u);
    const float2 query = scale * tile::unpack(i < chunk.n ? queries_ahead[r % kAhead] : 0u);
    const float2 start = exp2_pair(from_start[r]), end = exp2_pair(total - from_start[r]);
    const float2 rows = key * start, columns = key * end, queries = query * start;
    store_pair(&tiles.k16[i * kLd + x], block % 2 == 0 ? columns : rows);
    store_pair(&tiles.k32[i * kLd + x], outer * (block < 2 ? columns : rows));
    if (block % 2 == 1) store_pair(&tiles.q[(query_row16(block) + own) * kLd + x], queries);
    if (block >= 2) store_pair(&tiles.q[i * kLd + x], outer * queries);
    if (unbounded) {
      *reinterpret_cast<float2*>(tiles.sums(block) + own * kD + x) = from_start[r];
    } else {
      const float2 up = exp2_pair(from_start[r] - reference), down = exp2_pair(reference - from_start[r]);
      store_pair(&tiles.diagonal[block][0][own * kLd + x], key * up);
      store_pair(&tiles.diagonal[block][1][own * kLd + x], key * down);
      store_pair(&tiles.diagonal[block][2][own * kLd + x], query * up);
    }
    if (log_sums != nullptr) *reinterpret_cast<float2*>(log_sums + i * ld_sums + x) = from_start[r];
    if (operands == nullptr) continue;
    store_pair(&operands->k_entry[i * kD + x], entry * rows);
    store_pair(&operands->q_entry[i * kD + x], entry * queries);
    store_pair(&operands->k_exit[i * kD + x], exit * columns);
  }
}

// Launches of one kernel each; `records` is [chunk_count, H].
void make_operands(const DeltaRuleProblem& p, Operands* records, const Launch& launch);
// Outputs and final states, or (with `entries`) the states at the entries of chunks [chunk_count, H, D, D] and the
// prediction errors [T, H, D].
void walk_states(const DeltaRuleProblem& p, const Operands* records, void* o, void* st, bf16* entries, bf16* errors,
                 const Launch& launch);
// The gradients of the values and initial states, those at the exits of chunks [chunk_count, H, D, D] and of the u_t.
void retreat_states(const DeltaRuleBackward& a, const Operands* records, bf16* dexits, bf16* Y, const Launch& launch);
// Shared memory of the largest of these kernels.
std::size_t largest_shared_bytes();
// All other gradients.
struct GradientSources {
  const bf16 *entries, *dexits, *W, *Y;
  const Operands* records;
  float *sum_dq, *sum_dk;  // [T, H_K, D] sums over the value heads of a key head so far; none with one each
};
void chunk_gradients(const DeltaRuleBackward& a, const GradientSources& from, const Launch& launch);

}  // namespace weft::delta_tensor
