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

// A warp's share of dq of one tile of queries of one head, which lies at `sums` as its threads hand sums over: 16 rows
// of one half of the columns. Rounds `scale` times that.
template <int D>
__device__ inline void round_sums(const float* sums, float scale, tile::bf16* dq, int piece, int first_row, int rows,
                                  int stride, int width, Write write) {
  const int lane = anew(static_cast<int>(threadIdx.x) % tile::kWarp);
  const auto store = [&](int row, int column, const std::uint32_t(&x)[4]) {
    if (row >= rows || column >= width) return;
    tile::bf16* const to = dq + static_cast<std::int64_t>(row) * stride + column;
    tile::Vector16<tile::bf16> value = *reinterpret_cast<const tile::Vector16<tile::bf16>*>(x);
    if (write == Write::accumulate) value = sum_of(tile::load16(to), value);
    tile::store16(to, value);
  };
  const int row = first_row + lane / 4;
#pragma unroll
  for (int c = 0; c < kHalf<D> / 8; c += 4) {
    alignas(16) std::uint32_t upper[4], lower[4];  // 8 rows further down
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float4 x = *reinterpret_cast<const float4*>(sums + piece_offset(lane, c + k));
      upper[k] = tile::pack(x.x * scale, x.y * scale);
      lower[k] = tile::pack(x.z * scale, x.w * scale);
    }
    transpose_quad(upper);
    transpose_quad(lower);
    // A half of 192 columns is a panel of 64 and half of the third.
    const int first = c < 8 ? piece * (D <= 128 ? kHalf<D> : 64) + c * 8 : 128 + piece * 32;
    store(row, first + lane % 4 * 8, upper);
    store(row + 8, first + lane % 4 * 8, lower);
  }
}

// Rounds dq of the tiles to which an item adds last; by all computing warps, after `n` steps in all. The copy engine
// brings the sums to where they were handed over, every warp's to its own places, so that nobody else is waited for;
// the caches next to the processor are too small for as many reads as must be on their way.
template <int D, int D_V, Makes kMakes>
__device__ inline void finish_queries(BackwardMemory<D, D_V, kMakes>& m, const KeyItem& item, const BackwardArgs& a,
                                      std::uint32_t n, int group, int thread) {
  constexpr int kBuffers = BackwardMemory<D, D_V, kMakes>::kSumBuffers, kParts = kHalf<D> / 8;
  constexpr std::uint32_t kPartBytes = 4 * tile::kWarp * sizeof(float);
  if (a.dq == nullptr) return;
  thread = anew(thread);
  const int G = a.H_Q / a.H_KV, lane = thread % tile::kWarp, warp = uniform(thread / tile::kWarp);
  const auto place = [&](int i) {  // of tile i % 2 of head i / 2 of the group
    return static_cast<std::int64_t>(item.kv_head * G + i / 2) * a.query_count + item.tile.query_tile + item.first +
           i % 2;
  };
  std::uint32_t round = m.rounds[group][warp];
#pragma unroll 1
  for (int begin = 0; begin < 2 * G; begin += tile::kWarp) {
    // Every lane looks after one tile.
    const int own = begin + lane;
    int row = 0, rows = 0;
    if (own < 2 * G && item.first + own % 2 <= item.last) {
      const AttentionQueryTile& t = a.query_tiles[item.tile.query_tile + item.first + own % 2];
      if (t.count > 0 && is_last(item.tile, t)) {
        row = t.row;
        rows = t.count;
        while (load_acquire(a.turns + place(own)) != kComplete) {
        }
      }
    }
    const std::uint32_t tiles = __ballot_sync(0xffffffffu, rows > 0);
    __syncwarp();
    tile::fence_async_global();
    const auto load = [&](int i, std::uint32_t round) {
      const int buffer = round % kBuffers;
      tile::Barrier& here = m.sums_here[buffer][group][warp];
      __syncwarp();  // all lanes have read what was there before
      if (lane == 0) here.arrive_expect(kParts * kPartBytes);
      __syncwarp();
      if (lane < kParts) {
        tile::load_bytes(&m.dq[buffer][group][piece_offset(warp * tile::kWarp, lane)],
                         a.dq_sum + (place(begin + i) * 2 + group) * kPiece<D> + piece_offset(warp * tile::kWarp, lane),
                         kPartBytes, here);
      }
    };
    std::uint32_t to_load = tiles, loaded = round;
    const auto load_next = [&] {
      if (to_load == 0) return;
      load(__ffs(static_cast<int>(to_load)) - 1, loaded++);
      to_load &= to_load - 1;
    };
    if (tiles != 0) {
      // What was handed over has been added.
#pragma unroll
      for (std::uint32_t from = n; from < n + kBuffers; ++from) {
        m.dq_empty[from % kBuffers].wait(from / kBuffers % 2 ^ 1);
      }
    }
#pragma unroll
    for (int i = 0; i < kBuffers; ++i) load_next();
#pragma unroll 1
    for (std::uint32_t left = tiles; left != 0; left &= left - 1, ++round) {
      const int i = __ffs(static_cast<int>(left)) - 1, buffer = round % kBuffers;
      m.sums_here[buffer][group][warp].wait(round / kBuffers % 2);
      const std::int64_t first_row = __shfl_sync(0xffffffffu, row, i);
      round_sums<D>(&m.dq[buffer][group][piece_offset(warp * tile::kWarp, 0)], a.scale,
                    a.dq + (first_row * a.H_Q + item.kv_head * G + (begin + i) / 2) * a.D, group, warp * 16,
                    __shfl_sync(0xffffffffu, rows, i), a.H_Q * a.D, a.D, a.write_dq);
      load_next();
    }
  }
  __syncwarp();
  if (lane == 0) m.rounds[group][warp] = round;
}

}  // namespace weft::attention_cuda
