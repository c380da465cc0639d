// The computing warpgroups of attention_backward_hopper.cuh, and the kernel.
#pragma once

#include "modules/families/attention/attention_backward_hopper.cuh"

namespace weft::attention_cuda {

// Writes [64 keys x D] of one warpgroup through its rows of a tile that nothing reads any more.
template <int D>
__device__ inline void store_keys(const tile::Accumulator<D>& sum, tile::SharedTile<kKeyRows, D>& staging,
                                  const KeyItem& item, tile::bf16* to, int H_KV, int width, Write write, int group,
                                  int thread) {
  asm volatile("" : "+r"(thread));  // nothing of this is worth registers all along the main loop
  tile::store_rounded(sum, staging, group * 64, 0, thread);
  tile::barrier_sync<tile::kWarpgroup>(2 + group);
  constexpr int kChunks = D / 8;
#pragma unroll 1
  for (int i = thread; i < 64 * kChunks; i += tile::kWarpgroup) {
    const int row = group * 64 + i / kChunks, column = i % kChunks * 8;
    if (row >= item.tile.count || column >= width) continue;
    tile::bf16* const at = to + (static_cast<std::int64_t>(item.tile.row + row) * H_KV + item.kv_head) * width + column;
    tile::Vector16<tile::bf16> value = staging.chunk(row, column);
    if (write == Write::accumulate) {
      const tile::Vector16<tile::bf16> before = tile::load16(at);
#pragma unroll
      for (int c = 0; c < 8; ++c) value.set(c, before.get(c) + value.get(c));
    }
    tile::store16(at, value);
  }
}

// The same value in every lane, said in a way that the compiler believes: branches on it do not diverge.
__device__ inline int uniform(int x) {
  return __shfl_sync(0xffffffffu, x, 0);
}

// One warpgroup's half of the columns of dq for one step.
template <int D>
struct HalfSum {
  static_assert(kHalf<D> == 32 || kHalf<D> == 64 || kHalf<D> == 96, "heads of 64, 128 and 192");
  static constexpr int kWide = kHalf<D> < 64 ? kHalf<D> : 64;
  tile::Accumulator<kWide> first;
  tile::Accumulator<32> rest;  // of 96

  // dz [queries x keys] times the half of k's columns.
  template <class Dz, class K>
  __device__ void multiply(const Dz& dz, const K& k, int group) {
    tile::multiply(first, dz, k.template part_at<kWide>(group));
    if constexpr (kHalf<D> == 96) tile::multiply(rest, dz, k.template part_at<32>(4 + group));
  }
  __device__ float get(int i) const { return i < kWide / 2 ? first.x[i] : rest.x[i - kWide / 2]; }
  __device__ void scale(float by) {
#pragma unroll
    for (float& x : first.x) x *= by;
    if constexpr (kHalf<D> == 96) {
#pragma unroll
      for (float& x : rest.x) x *= by;
    }
  }
};

// A warpgroup that computes.
template <int D, int D_V, Makes kMakes, bool Cap>
__device__ void consume(BackwardMemory<D, D_V, kMakes>& m, const BackwardArgs& a, int group, int thread) {
  using Memory = BackwardMemory<D, D_V, kMakes>;
  constexpr bool kKeys = Memory::kKeys, kValues = Memory::kValues;
  constexpr int kConsumerThreads = 2 * tile::kWarpgroup;
  const int G = a.H_Q / a.H_KV;
  tile::PipelineState<2> state;
  tile::PipelineState<Memory::kGradientStages> gradients;
  std::uint32_t kv_parity = 0, handed = 0;
  int buffer = 0;
  const auto release = [&](tile::Barrier& barrier) {
    __syncwarp();  // all lanes have read what may be overwritten now
    if (thread % 32 == 0) barrier.arrive();
  };
  const auto own_sync = [&] { tile::barrier_sync<tile::kWarpgroup>(2 + group); };
  // Rows of another document count as zero in every sum.
  const auto clean = [&](auto& t, int count) {
    if (count >= std::remove_reference_t<decltype(t)>::kRows) return;
    tile::zero_rows_outside<tile::kWarpgroup>(t, 0, count, thread);
    tile::fence_async_shared();
    own_sync();
  };

  for (;; kv_parity ^= 1) {
    m.kv_full.wait(kv_parity);
    if (uniform(m.item.kv_head) < 0) return;
    const int steps = uniform(m.item.steps(G));
    const int count = uniform(m.item.tile.count), anchor = uniform(m.item.tile.anchor);
    const int key = uniform(m.item.tile.position), own_key = key + group * 64 + tile::Accumulator<8>::row(thread, 0);
    clean(m.k, count);
    clean(m.v, count);

    tile::Accumulator<D> dk;
    tile::Accumulator<D_V> dv;
    tile::Accumulator<kQueries> s, dp;
    if constexpr (kKeys) dk.fill(0.0f);
    if constexpr (kValues) dv.fill(0.0f);
    const auto k_rows = tile::along_columns(m.k).template part_at<64>(group);
    const auto v_rows = tile::along_columns(m.v).template part_at<64>(group);
    HalfSum<D> dq;
    const auto hand_over = [&] {
      const std::uint32_t odd = handed % 2;
      const int to = Memory::kSumBuffers == 2 ? odd : 0;
      m.dq_empty[to].wait((Memory::kSumBuffers == 2 ? handed / 2 : handed) % 2 ^ 1);
      ++handed;
#pragma unroll
      for (int c = 0; c < D / 16; ++c) {
        float4 x;
        x.x = dq.get(4 * c);
        x.y = dq.get(4 * c + 1);
        x.z = dq.get(4 * c + 2);
        x.w = dq.get(4 * c + 3);
        *reinterpret_cast<float4*>(&m.dq[to][group][piece_offset(thread, c)]) = x;
      }
      tile::fence_async_shared();
      m.dq_full[odd].arrive();
    };
#pragma unroll 1
    for (int i = 0; i < steps; ++i, state.advance(), gradients.advance()) {
      const int stage = state.stage, d_o_stage = gradients.stage;
      m.q_full[stage].wait(state.parity());
      const StepInfo step{uniform(m.step[stage].position), uniform(m.step[stage].count)};
      clean(m.q[stage], step.count);
      tile::wgmma_fence();
      tile::multiply(s, k_rows, tile::along_columns(m.q[stage]));
      tile::wgmma_commit();
      if constexpr (kKeys) {
        if (i > 0) hand_over();  // the step before's
        m.d_o_full[d_o_stage].wait(gradients.parity());
        clean(m.d_o[d_o_stage], step.count);
        tile::wgmma_fence();
        tile::multiply(dp, v_rows, tile::along_columns(m.d_o[d_o_stage]));
        tile::wgmma_commit();
        tile::wgmma_wait<1>(s);
      } else {
        m.d_o_full[d_o_stage].wait(gradients.parity());
        clean(m.d_o[d_o_stage], step.count);
        tile::wgmma_wait<0>(s);
      }

      const bool partial = count < kKeyRows || key + kKeyRows - 1 > step.position ||
                           step.position + kQueries - 1 - key >= a.sight.window;
      const float* const stats = m.stats[stage] + thread % 4 * 2;
      if (partial) {
        // Of two keys, the columns of queries that see them.
        const int shift = step.position + thread % 4 * 2;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int own = own_key + 8 * r;
          const bool always = (anchor != 0) | (own < a.sight.sinks);
          const int begin = anchor != 0 ? 0 : own - shift;
          const int end = own >= key + count ? 0 : always ? kQueries : own - shift + a.sight.window;
#pragma unroll
          for (int c = 0; c < kQueries / 8; ++c) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              float& x = s.x[4 * c + 2 * r + e];
              x = (8 * c + e >= begin) & (8 * c + e < end) ? x : -INFINITY;
            }
          }
        }
      }
      tile::RegisterOperand<kQueries> p, dz;
#pragma unroll
      for (int c = 0; c < kQueries / 8; ++c) {
        const float2 lse = *reinterpret_cast<const float2*>(stats + 8 * c);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          float& x = s.x[4 * c + 2 * r];
          float& y = s.x[4 * c + 2 * r + 1];
          float slope_x = 1.0f, slope_y = 1.0f;
          if constexpr (Cap) {
            const bool hidden_x = x == -INFINITY, hidden_y = y == -INFINITY;
            const float tanh_x = tile::tanh_fast(x * a.transform), tanh_y = tile::tanh_fast(y * a.transform);
            slope_x = 1.0f - tanh_x * tanh_x;
            slope_y = 1.0f - tanh_y * tanh_y;
            x = hidden_x ? -INFINITY : tanh_x;
            y = hidden_y ? -INFINITY : tanh_y;
          }
          x = tile::exp2_fast(x * a.unit - lse.x);
          y = tile::exp2_fast(y * a.unit - lse.y);
          p.x[c / 2][c % 2 * 2 + r] = tile::pack(x, y);
          if constexpr (Cap) {
            x *= slope_x;
            y *= slope_y;
          }
        }
      }
      if constexpr (kValues) {
        tile::wgmma_fence(dv, p);
        tile::multiply_add(dv, p, tile::along_rows(m.d_o[d_o_stage]));
        tile::wgmma_commit();
      }
      if constexpr (kKeys) {
        tile::wgmma_wait<kValues ? 1 : 0>(dp);
        if constexpr (!kValues) release(m.d_o_empty[d_o_stage]);
#pragma unroll
        for (int c = 0; c < kQueries / 8; ++c) {
          const float2 delta = *reinterpret_cast<const float2*>(stats + kQueries + 8 * c);
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const int x = 4 * c + 2 * r;
            dz.x[c / 2][c % 2 * 2 + r] = tile::pack(s.x[x] * (dp.x[x] - delta.x), s.x[x + 1] * (dp.x[x + 1] - delta.y));
          }
        }
        // The other buffer was read two steps ago at the latest: both warpgroups have met since.
        tile::store_operand(dz, m.dz[buffer], group * 64, 0, thread);
        tile::fence_async_shared();
        tile::barrier_sync<kConsumerThreads>(1);

        tile::wgmma_fence(dk, dz);
        tile::multiply_add(dk, dz, tile::along_rows(m.q[stage]));
        tile::wgmma_commit();
        dq.multiply(tile::along_rows(m.dz[buffer]), tile::along_rows(m.k), group);
        tile::wgmma_commit();
      }
      tile::wgmma_wait<0>();
      if constexpr (kKeys) dq.scale(a.scale);
      buffer ^= 1;
      release(m.q_empty[stage]);
      if constexpr (kValues) release(m.d_o_empty[d_o_stage]);
    }
    if (kKeys && steps > 0) hand_over();

    // Both warpgroups read all of k until here.
    tile::barrier_sync<kConsumerThreads>(1);
    if constexpr (kKeys) {
#pragma unroll
      for (int i = 0; i < D / 2; ++i) dk.x[i] *= a.scale;
      if (a.dk != nullptr) store_keys(dk, m.k, m.item, a.dk, a.H_KV, a.D, a.write_dk, group, thread);
    }
    if constexpr (kValues) {
      if (a.dv != nullptr) store_keys(dv, m.v, m.item, a.dv, a.H_KV, a.D_V, a.write_dv, group, thread);
    }
    tile::fence_async_shared();
    m.kv_empty.arrive();
  }
}

template <int D, int D_V, Makes kMakes, bool Cap>
__global__ void __launch_bounds__(kBackwardThreads, 1)
    backward_kernel(const __grid_constant__ tile::TileMap<kKeyRows, 3> k_map,
                    const __grid_constant__ tile::TileMap<kKeyRows, 3> v_map,
                    const __grid_constant__ tile::TileMap<kQueries, 3> q_map,
                    const __grid_constant__ tile::TileMap<kQueries, 3> d_o_map,
                    const __grid_constant__ BackwardArgs a) {
#ifdef WEFT_HOPPER
  extern __shared__ __align__(1024) char bytes[];
  using Memory = BackwardMemory<D, D_V, kMakes>;
  Memory& m = *reinterpret_cast<Memory*>(bytes);
  if (threadIdx.x == 0) {
    m.kv_full.init(1);
    m.kv_empty.init(2 * tile::kWarpgroup + (Memory::kKeys ? 2 : 0));
    for (int i = 0; i < Memory::kGradientStages; ++i) {
      m.d_o_full[i].init(1);
      m.d_o_empty[i].init(8);
    }
    for (int i = 0; i < 2; ++i) {
      m.q_full[i].init(1);
      m.q_empty[i].init(8);
      m.dq_full[i].init(2 * tile::kWarpgroup);
    }
    for (tile::Barrier& barrier : m.dq_empty) barrier.init(1);
    tile::fence_barrier_init();
  }
  __syncthreads();
  const int group = static_cast<int>(threadIdx.x) / tile::kWarpgroup;
  if (group == 0) {
    tile::shrink_registers<40>();
    if (threadIdx.x == 0) produce(m, k_map, v_map, q_map, d_o_map, a);
    if constexpr (Memory::kKeys) {
      if (threadIdx.x == 32) add_pieces(m, a, 0);
      if (threadIdx.x == 64) add_pieces(m, a, 1);
    }
  } else {
    tile::grow_registers<232>();
    consume<D, D_V, kMakes, Cap>(m, a, group - 1, static_cast<int>(threadIdx.x) % tile::kWarpgroup);
  }
#else
  tile::unavailable();
#endif
}

}  // namespace weft::attention_cuda
