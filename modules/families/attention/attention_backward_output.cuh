// What leaves the computing warpgroups of attention_backward_hopper.cuh at the end of an item: dk and dv of its keys,
// and dq of the queries to which it adds last.
#pragma once

#include "modules/families/attention/attention_backward_hopper.cuh"

namespace weft::attention_cuda {

__device__ inline tile::Vector16<tile::bf16> sum_of(tile::Vector16<tile::bf16> a, const tile::Vector16<tile::bf16>& b) {
#pragma unroll
  for (int c = 0; c < 8; ++c) a.set(c, a.get(c) + b.get(c));
  return a;
}

// The same number, computed where it is used: what follows from it is not worth registers all along the main loop.
__device__ inline int anew(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// Writes [64 keys x D] of one warpgroup through its rows of a tile that nothing reads any more.
template <int D, int Width>
__device__ inline void store_keys(const tile::Accumulator<D>& sum, tile::SharedTile<kKeyRows, Width>& staging,
                                  const KeyItem& item, tile::bf16* to, int H_KV, int width, int stride, Write write,
                                  int group, int thread) {
  thread = anew(thread);
  constexpr int kPart = D < Width ? D : Width, kChunks = kPart / 8;
  tile::Accumulator<kPart> part;
#pragma unroll
  for (int i = 0; i < kPart / 2; ++i) part.x[i] = sum.x[i];
  tile::store_rounded(part, staging, group * 64, 0, thread);
  tile::barrier_sync<tile::kWarpgroup>(1 + group);
#pragma unroll 1
  for (int i = thread; i < 64 * kChunks; i += tile::kWarpgroup) {
    const int row = group * 64 + i / kChunks, column = i % kChunks * 8;
    if (row >= item.tile.count || column >= width) continue;
    tile::bf16* const at =
        to + (static_cast<std::int64_t>(item.tile.row + row) * H_KV + item.kv_head) * stride + column;
    tile::Vector16<tile::bf16> value = staging.chunk(row, column);
    if (write == Write::accumulate) value = sum_of(tile::load16(at), value);
    tile::store16(at, value);
  }
  tile::barrier_sync<tile::kWarpgroup>(1 + group);
  if constexpr (D > kPart) {
    tile::Accumulator<D - kPart> rest;
#pragma unroll
    for (int i = 0; i < (D - kPart) / 2; ++i) rest.x[i] = sum.x[kPart / 2 + i];
    store_keys(rest, staging, item, to + kPart, H_KV, width - kPart, stride, write, group, thread);
  }
}

// Quads of lanes change rows and columns: x[i] of lane j for x[j] of lane i.
__device__ inline void transpose_quad(std::uint32_t (&x)[4]) {
  const int lane = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int mask = 1; mask < 4; mask *= 2) {
    const bool upper = (lane & mask) != 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if ((i & mask) != 0) continue;
      const std::uint32_t other = __shfl_xor_sync(0xffffffffu, upper ? x[i] : x[i + mask], mask);
      (upper ? x[i] : x[i + mask]) = other;
    }
  }
}

// Rounds `scale` times dq of one tile of queries of one head; by one warp, each lane of which reads what one thread
// handed over. All reads of a batch are on their way before the first is used: they come from afar, and what is stored
// might be what is read for all that the compiler knows.
template <int D>
__device__ inline void round_sums(const float* sums, float scale, tile::bf16* dq, int rows, int stride, int width,
                                  Write write) {
  constexpr int kPacks = kHalf<D> / 8, kBatch = D <= 128 ? 4 : 2;  // of a lane's float4 in 16 rows; times 16 rows
  const int lane = anew(static_cast<int>(threadIdx.x) % tile::kWarp);
  const auto store = [&](int row, int column, const std::uint32_t(&x)[4]) {
    if (row >= rows || column >= width) return;
    tile::bf16* const to = dq + static_cast<std::int64_t>(row) * stride + column;
    tile::Vector16<tile::bf16> value = *reinterpret_cast<const tile::Vector16<tile::bf16>*>(x);
    if (write == Write::accumulate) value = sum_of(tile::load16(to), value);
    tile::store16(to, value);
  };
#pragma unroll 1
  for (int i = 0; i < 8; i += kBatch) {
    const int piece = i / 4;
    float4 x[kBatch][kPacks];
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
#pragma unroll
      for (int c = 0; c < kPacks; ++c) {
        const int at = piece * kPiece<D> + piece_offset((i + j) % 4 * tile::kWarp + lane, c);
        x[j][c] = __ldcg(reinterpret_cast<const float4*>(sums + at));
      }
    }
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int row = (i + j) % 4 * 16 + lane / 4;
#pragma unroll
      for (int c = 0; c < kPacks; c += 4) {
        alignas(16) std::uint32_t upper[4], lower[4];  // 8 rows further down
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const float4& own = x[j][c + k];
          upper[k] = tile::pack(own.x * scale, own.y * scale);
          lower[k] = tile::pack(own.z * scale, own.w * scale);
        }
        transpose_quad(upper);
        transpose_quad(lower);
        // A half of 192 columns is a panel of 64 and half of the third.
        const int first = c < 8 ? piece * (D <= 128 ? kHalf<D> : 64) + c * 8 : 128 + piece * 32;
        store(row, first + lane % 4 * 8, upper);
        store(row + 8, first + lane % 4 * 8, lower);
      }
    }
  }
}

// Rounds dq of the tiles to which an item adds last, while the sums are in the cache; by all computing warps.
template <int D>
__device__ inline void finish_queries(const KeyItem& item, const BackwardArgs& a, int thread) {
  if (a.dq == nullptr) return;
  thread = anew(thread);
  const int G = a.H_Q / a.H_KV;
#pragma unroll 1
  for (int i = thread / tile::kWarp; i < 2 * G; i += 2 * tile::kWarpgroup / tile::kWarp) {
    const int index = item.first + i % 2;
    if (index > item.last) continue;
    const AttentionQueryTile& t = a.query_tiles[item.tile.query_tile + index];
    if (t.count <= 0 || !is_last(item.tile, t)) continue;
    const int head = item.kv_head * G + i / 2;
    const std::int64_t at = static_cast<std::int64_t>(head) * a.query_count + item.tile.query_tile + index;
    if (threadIdx.x % tile::kWarp == 0) {
      while (load_acquire(a.turns + at) != kComplete) {
      }
    }
    __syncwarp();
    round_sums<D>(a.dq_sum + at * 2 * kPiece<D>, a.scale,
                  a.dq + (static_cast<std::int64_t>(t.row) * a.H_Q + head) * a.D, t.count, a.H_Q * a.D, a.D,
                  a.write_dq);
  }
}

}  // namespace weft::attention_cuda
