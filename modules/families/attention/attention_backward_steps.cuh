// The computing warpgroups of attention_backward_hopper.cuh, and the kernel.
#pragma once

#include "modules/families/attention/attention_backward_output.cuh"

namespace weft::attention_cuda {

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
  template <int Pending>
  __device__ void wait() {
    if constexpr (kHalf<D> == 96) {
      tile::wgmma_wait<Pending>(first, rest);
    } else {
      tile::wgmma_wait<Pending>(first);
    }
  }
  __device__ float get(int i) const { return i < kWide / 2 ? first.x[i] : rest.x[i - kWide / 2]; }
};

// A warpgroup that computes.
template <int D, int D_V, Makes kMakes, bool Cap>
__device__ void consume(BackwardMemory<D, D_V, kMakes>& m, const BackwardArgs& a, int group, int thread) {
  using Memory = BackwardMemory<D, D_V, kMakes>;
  constexpr bool kKeys = Memory::kKeys, kValues = Memory::kValues;
  constexpr int kGradientStages = Memory::kGradientStages, kSumBuffers = Memory::kSumBuffers;
  std::uint32_t items = 0;  // before this one
  std::uint32_t n = 0;      // steps before this one, in all items: what stages and parities follow from
  // Of tiles, which tensor cores read. What threads read themselves each of them gives back, as the race checker does
  // not follow arrivals for others.
  const auto release = [&](tile::Barrier& barrier) {
    __syncwarp();  // all lanes have read what may be overwritten now
    if (thread % 32 == 0) barrier.arrive();
  };
  const auto own_sync = [&] { tile::barrier_sync<tile::kWarpgroup>(1 + group); };
  // The warpgroups take turns in starting the products that end a step, so that one makes exponentials while the other
  // keeps the tensor cores busy: left alone they drift together, and then all products and all exponentials coincide.
  const auto take_turn = [&] { tile::barrier_sync<2 * tile::kWarpgroup>(3 + group); };
  const auto pass_turn = [&] { tile::barrier_arrive<2 * tile::kWarpgroup>(4 - group); };
  if (kKeys && group == 1) pass_turn();
  // Rows of another document count as zero in every sum. Each warpgroup clears all that it reads.
  const auto clean = [&](auto& t, int count) {
    if (count >= std::remove_reference_t<decltype(t)>::kRows) return;
    tile::zero_rows_outside<tile::kWarpgroup>(t, 0, count, thread);
    tile::fence_async_shared();
    own_sync();
  };

  // Rounds dq of what the item before has completed: by now nobody's turn is waited for.
  const auto finish_item_before = [&] {
    if constexpr (kKeys) {
      if (items > 0) finish_queries(m, m.item[(items - 1) % Memory::kItems], a, n, group, thread);
    }
  };

  // Read again where they are needed: a register all along the main loop is worth more.
  const auto flags_of = [&](int stage) { return uniform(m.step[stage].flags); };

  for (;; ++items) {
    m.k_full.wait(items % 2);
    const KeyItem& item = m.item[items % Memory::kItems];
    if (uniform(item.kv_head) < 0) return finish_item_before();
    const bool some = uniform(item.steps(1)) > 0;

    tile::Accumulator<D> dk;
    tile::Accumulator<D_V> dv;
    tile::Accumulator<kQueries> s, dp;
    if constexpr (kKeys) dk.fill(0.0f);
    if constexpr (kValues) dv.fill(0.0f);
    const auto k_rows = tile::along_columns(m.k).template part_at<64>(group);
    const auto v_rows = tile::along_columns(m.v).template part_at<64>(group);
    HalfSum<D> dq;
    // Starts the scores of step n; of nothing in particular if there is none.
    const auto start_scores = [&](bool some) {
      const int stage = n % 2;
      if (some) {
        m.q_full[stage].wait(n / 2 % 2);
        if ((flags_of(stage) & StepInfo::kCut) != 0) clean(m.q[stage], uniform(m.step[stage].count));
      }
      tile::wgmma_fence();
      tile::multiply(s, k_rows, tile::along_columns(m.q[stage]));
      tile::wgmma_commit();
    };
    const auto hand_dz = [&](const tile::RegisterOperand<kQueries>& dz) {
      m.dz_empty[n % 2].wait(n / 2 % 2 ^ 1);
      tile::store_operand(dz, m.dz[n % 2], group * 64, 0, anew(thread));
      tile::fence_async_shared();
      release(m.dz_full[n % 2]);
    };
    // Starts dq of step n - 1.
    const auto start_dq = [&](bool some) {
      const int stage = (n - 1) % 2;
      if (some) m.dz_full[stage].wait((n - 1) / 2 % 2);
      tile::wgmma_fence();
      dq.multiply(tile::along_rows(m.dz[stage]), tile::along_rows(m.k), group);
      tile::wgmma_commit();
    };
    // Hands dq of step `from` to the copy engine.
    const auto hand_over = [&](std::uint32_t from) {
      const int to = kSumBuffers == 2 ? from % 2 : 0;
      release(m.dz_empty[from % 2]);
      m.dq_empty[to].wait(from / kSumBuffers % 2 ^ 1);
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
      m.dq_full[from % 2].arrive();
    };

    // The end of step n, whose dk is being made: dq of the step before (which is late so that the warpgroups need not
    // meet), and the scores of the next.
    const auto complete_step = [&] {
      const int stage = n % 2, d_o_stage = n % kGradientStages;
      const int flags = flags_of(stage);
      const bool first = (flags & StepInfo::kFirst) != 0, last = (flags & StepInfo::kLast) != 0;
      if constexpr (kKeys) {
        start_dq(!first);
        tile::wgmma_wait<1>(dk);
        m.q_empty[stage].arrive();
      }
      ++n;
      start_scores(!last);
      if constexpr (kKeys) {
        pass_turn();
        dq.template wait<1>();
        if (!first) hand_over(n - 2);
      } else {
        tile::wgmma_wait<1>(dv);
        m.q_empty[stage].arrive();
        release(m.d_o_empty[d_o_stage]);
      }
      tile::wgmma_wait<0>(s);
      return !last;
    };

    clean(m.k, uniform(item.tile.count));
    start_scores(some);
    m.v_full.wait(items % 2);
    clean(m.v, uniform(item.tile.count));
    tile::wgmma_wait<0>(s);
#pragma unroll 1
    for (bool more = some; more;) {
      const int stage = n % 2, d_o_stage = n % kGradientStages;
      const int flags = flags_of(stage);
      // Read before anything waits: where they are needed their way would be waited for. A cap leaves no registers.
      constexpr int kColumns = kQueries / 8;
      const auto read_lse = [&](int c) {
        return *reinterpret_cast<const float2*>(m.stats[stage] + thread % 4 * 2 + 8 * c);
      };
      float2 early[kColumns];
      if constexpr (!Cap) {
#pragma unroll
        for (int c = 0; c < kColumns; ++c) early[c] = read_lse(c);
      }
      m.d_o_full[d_o_stage].wait(n / kGradientStages % 2);
      tile::RegisterOperand<kQueries> p, dz;
      if constexpr (kKeys) {
        // Nothing to add but zeros to what the other warpgroup makes of dq.
        if ((flags & StepInfo::kBlind << group) != 0) {
          release(m.d_o_empty[d_o_stage]);
          for (auto& x : dz.x) {
            for (std::uint32_t& y : x) y = 0;
          }
          hand_dz(dz);
          take_turn();
          more = complete_step();
          continue;
        }
      }
      if ((flags & StepInfo::kCut) != 0) clean(m.d_o[d_o_stage], uniform(m.step[stage].count));
      if constexpr (kKeys) {
        tile::wgmma_fence();
        tile::multiply(dp, v_rows, tile::along_columns(m.d_o[d_o_stage]));
        tile::wgmma_commit();
      }

      const float* const stats = m.stats[stage] + thread % 4 * 2;
      // What nobody sees: the power of 2 of its score is 0, and with a cap its slope is finite.
      constexpr float kHidden = Cap ? -1e15f : -INFINITY;
      if constexpr (Cap) {
#pragma unroll
        for (float& x : s.x) x = tile::tanh_fast(x * a.transform);
      }
      if ((flags & StepInfo::kPartial) != 0) {
        // Of two keys, the columns of queries that see them.
        const int key = item.tile.position, end_key = key + item.tile.count;
        const bool anchor = item.tile.anchor != 0;
        const int own_key = key + group * 64 + tile::Accumulator<8>::row(thread, 0);
        const int shift = m.step[stage].position + thread % 4 * 2;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int own = own_key + 8 * r;
          const bool always = anchor | (own < a.sight.sinks);
          const int begin = anchor ? 0 : own - shift;
          const int end = own >= end_key ? 0 : always ? kQueries : own - shift + a.sight.window;
#pragma unroll
          for (int c = 0; c < kQueries / 8; ++c) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              float& x = s.x[4 * c + 2 * r + e];
              x = (8 * c + e >= begin) & (8 * c + e < end) ? x : kHidden;
            }
          }
        }
      }
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const float2 lse = Cap ? read_lse(c) : early[c];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          float& x = s.x[4 * c + 2 * r];
          float& y = s.x[4 * c + 2 * r + 1];
          const float slope_x = 1.0f - x * x, slope_y = 1.0f - y * y;  // of the cap
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
        hand_dz(dz);
        take_turn();
        tile::wgmma_fence(dk, dz);
        tile::multiply_add(dk, dz, tile::along_rows(m.q[stage]));
        tile::wgmma_commit();
        if constexpr (kValues) {
          tile::wgmma_wait<1>(dv);  // p's registers are needed
          release(m.d_o_empty[d_o_stage]);
        }
      }
      more = complete_step();
    }
    if (kKeys && some) {
      start_dq(true);
      dq.template wait<0>();
    }
    m.k_empty.arrive();
    if (kKeys && some) hand_over(n - 1);

    // The sums go out through this warpgroup's rows of v, which nobody else reads.
    if constexpr (kKeys) {
#pragma unroll
      for (int i = 0; i < D / 2; ++i) dk.x[i] *= a.scale;
      if (a.dk != nullptr) store_keys(dk, m.v, item, a.dk, a.H_KV, a.D, a.D, a.write_dk, group, thread);
    }
    if constexpr (kValues) {
      if (a.dv != nullptr) store_keys(dv, m.v, item, a.dv, a.H_KV, a.D_V, a.D_V, a.write_dv, group, thread);
    }
    tile::fence_async_shared();
    release(m.v_empty);
    finish_item_before();
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
  if (threadIdx.x == 0) m.init();
  __syncthreads();
  const int group = uniform(static_cast<int>(threadIdx.x) / tile::kWarpgroup);
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
