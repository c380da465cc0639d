// Forward kernel of attention.h for Hopper: bf16, one tile of 128 queries of one head at a time.
//
// Three warpgroups: one loads, two compute 64 rows each. A block takes work items from a counter until there are none,
// so that loading the next item's queries and keys runs beside the epilogue of this one. A consumer issues the scores
// of tile j + 1 and the sums of tile j together and does the softmax of j + 1 while the tensor cores work.
#pragma once

#include "autograd/tile/reduce.cuh"
#include "autograd/tile/tma.cuh"
#include "autograd/tile/wgmma.cuh"
#include "modules/families/attention/visibility.cuh"

namespace weft::attention_cuda {

namespace tile = weft::tile;

inline constexpr int kConsumers = 2;  // warpgroups
inline constexpr int kForwardThreads = (1 + kConsumers) * tile::kWarpgroup;

template <int D, int D_V>
struct ForwardPolicy {
  static constexpr int kKeys = D <= 192 ? 128 : 64;  // of a tile; the sums of wide values leave less room for scores
  static constexpr int kQueryStages = D <= 128 ? 2 : 1;
  static constexpr int kKeyStages = 2;
  // Queries as operands from registers spare the shared memory a third of what products read from it.
  static constexpr bool kHoldQueries = D <= 128;
};

// D and D_V are padded to panels of 64; what the tensors lack arrives as zero.
template <int D, int D_V>
struct ForwardMemory {
  using P = ForwardPolicy<D, D_V>;
  tile::SharedTile<kForwardRows, D> q[P::kQueryStages];
  tile::SharedTile<P::kKeys, D> k[P::kKeyStages];
  tile::SharedTile<P::kKeys, D_V> v[P::kKeyStages];
  AttentionQueryTile item[P::kQueryStages];
  int head[P::kQueryStages];    // -1: no more work
  int visits[P::kQueryStages];  // tiles of keys
  KeyVisit visit[P::kKeyStages];
  tile::Barrier q_full[P::kQueryStages], q_empty[P::kQueryStages];
  tile::Barrier k_full[P::kKeyStages], k_empty[P::kKeyStages];
  tile::Barrier v_full[P::kKeyStages], v_empty[P::kKeyStages];
};

struct ForwardArgs {
  const AttentionQueryTile* tiles;
  std::int32_t tile_count;
  std::int32_t H_Q, H_KV;
  std::int32_t D_V;  // of the tensors
  Sight sight;
  float transform;  // soft cap: what scores are multiplied by before tanh
  float unit;       // of a score (after tanh), in powers of 2
  const float* sink_logit;
  tile::bf16* o;
  float* lse;
  int* counter;   // starts at 0
  bool copy_out;  // whole tiles of o go through the copy engine
};

// Online softmax of 64 rows; a thread has two of them, each shared by a quad.
struct RunningSoftmax {
  float top[2];   // maximum of the scores
  float mass[2];  // this lane's share of the denominator, relative to top
};

// Scores -> powers of 2 relative to the new maximum; `rescale` is what earlier sums are to be multiplied by.
template <int N>
__device__ inline void update(tile::Accumulator<N>& s, RunningSoftmax& softmax, float (&rescale)[2], float unit) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float top = softmax.top[r];
#pragma unroll
    for (int i = 0; i < N / 8; ++i) top = fmaxf(top, fmaxf(s.x[4 * i + 2 * r], s.x[4 * i + 2 * r + 1]));
    top = tile::reduce_quad<tile::Max>(top);
    // A row that has seen nothing subtracts 0, so that its powers are 0.
    const float origin = (top == -INFINITY ? 0.0f : top) * unit;
    rescale[r] = tile::exp2_fast(softmax.top[r] * unit - origin);
    softmax.top[r] = top;
    float mass = 0.0f;
#pragma unroll
    for (int i = 0; i < N / 8; ++i) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float& x = s.x[4 * i + 2 * r + c];
        x = tile::exp2_fast(x * unit - origin);
        mass += x;
      }
    }
    softmax.mass[r] = softmax.mass[r] * rescale[r] + mass;
  }
}

template <int N>
__device__ inline void hide(tile::Accumulator<N>& s, const KeyVisit& v, const Sight& sight, int query, int thread) {
  const int shift = thread % 4 * 2;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const SeenColumns seen(sight, query + 8 * r, v.position + shift, v.count - shift);
#pragma unroll
    for (int i = 0; i < N / 8; ++i) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float& x = s.x[4 * i + 2 * r + c];
        x = seen.has(8 * i + c) ? x : -INFINITY;
      }
    }
  }
}

template <int D, int D_V, bool Cap>
__global__ void __launch_bounds__(kForwardThreads, 1)
    forward_kernel(const __grid_constant__ tile::TileMap<kForwardRows, 3> q_map,
                   const __grid_constant__ tile::TileMap<ForwardPolicy<D, D_V>::kKeys, 3> k_map,
                   const __grid_constant__ tile::TileMap<ForwardPolicy<D, D_V>::kKeys, 3> v_map,
                   const __grid_constant__ tile::TileMap<64, 3> o_map, const __grid_constant__ ForwardArgs a) {
#ifdef WEFT_HOPPER
  using P = ForwardPolicy<D, D_V>;
  using Memory = ForwardMemory<D, D_V>;
  extern __shared__ __align__(1024) char bytes[];
  Memory& m = *reinterpret_cast<Memory*>(bytes);
  constexpr int kConsumerThreads = kConsumers * tile::kWarpgroup;
  const int G = a.H_Q / a.H_KV;

  if (threadIdx.x == 0) {
    for (int i = 0; i < P::kQueryStages; ++i) {
      m.q_full[i].init(1);
      m.q_empty[i].init(kConsumerThreads);
    }
    for (int i = 0; i < P::kKeyStages; ++i) {
      m.k_full[i].init(1);
      m.v_full[i].init(1);
      m.k_empty[i].init(kConsumerThreads);
      m.v_empty[i].init(kConsumerThreads / 32);
    }
    tile::fence_barrier_init();
  }
  __syncthreads();

  tile::PipelineState<P::kQueryStages> q_state;
  tile::PipelineState<P::kKeyStages> kv_state;

  if (threadIdx.x < tile::kWarpgroup) {
    tile::shrink_registers<40>();
    if (threadIdx.x != 0) return;
    // Items of one key/value head come together, while its keys are in the cache.
    const int items = a.tile_count * a.H_Q;
    int next = atomicAdd(a.counter, 1);
    while (next < items) {
      const int item = next;
      next = atomicAdd(a.counter, 1);
      const AttentionQueryTile t = a.tiles[item / G % a.tile_count];
      const int kv_head = item / G / a.tile_count;
      const int head = kv_head * G + item % G;
      if (t.count <= 0) continue;
      m.q_empty[q_state.stage].wait(q_state.parity() ^ 1);
      const KeyWalk<P::kKeys> walk(t, a.sight);
      const int count = walk.count();
      m.item[q_state.stage] = t;
      m.head[q_state.stage] = head;
      m.visits[q_state.stage] = count;
      m.q_full[q_state.stage].arrive_expect(kForwardRows * D * 2);
      tile::load_tile(m.q[q_state.stage], q_map, m.q_full[q_state.stage], 0, t.row, head);
      q_state.advance();
      for (int j = 0; j < count; ++j, kv_state.advance()) {
        const int s = kv_state.stage;
        const KeyVisit visit = walk.visit(j, t, a.sight);
        const int row = visit.row;
        m.k_empty[s].wait(kv_state.parity() ^ 1);
        m.visit[s] = visit;
        m.k_full[s].arrive_expect(P::kKeys * D * 2);
        tile::load_tile(m.k[s], k_map, m.k_full[s], 0, row, kv_head);
        m.v_empty[s].wait(kv_state.parity() ^ 1);
        m.v_full[s].arrive_expect(P::kKeys * D_V * 2);
        tile::load_tile(m.v[s], v_map, m.v_full[s], 0, row, kv_head);
      }
    }
    m.q_empty[q_state.stage].wait(q_state.parity() ^ 1);
    m.head[q_state.stage] = -1;
    m.q_full[q_state.stage].arrive();
  } else {
    tile::grow_registers<232>();
    const int thread = threadIdx.x % tile::kWarpgroup;
    const int group = uniform(static_cast<int>(threadIdx.x) / tile::kWarpgroup) - 1;
    const int own = 1 + group;  // named barrier of this consumer's threads
    // Of a tile of values, which tensor cores read. What threads read themselves, each of them gives back, as the race
    // checker does not follow arrivals for others.
    const auto release = [&](tile::Barrier& barrier) {
      __syncwarp();
      if (thread % 32 == 0) barrier.arrive();
    };
    // Gives a tile of queries back when its output has been read.
    const auto release_queries = [&](int stage) {
      if (thread == 0) tile::wait_stores_read<0>();
      m.q_empty[stage].arrive();
    };
    int written = -1;  // the stage of an output that may still be on its way

    for (;; q_state.advance()) {
      m.q_full[q_state.stage].wait(q_state.parity());
      const int head = m.head[q_state.stage];
      if (head < 0) break;
      const AttentionQueryTile& t = m.item[q_state.stage];
      const int count = m.visits[q_state.stage];
      const int query = t.position + group * 64 + tile::Accumulator<8>::row(thread, 0);

      tile::Accumulator<D_V> o;
      o.fill(0.0f);
      RunningSoftmax softmax;
      {
        const float b = a.sink_logit == nullptr ? -INFINITY : a.sink_logit[head] * tile::kLog2e / a.unit;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          softmax.top[r] = b;
          softmax.mass[r] = b != -INFINITY && thread % 4 == 0 ? 1.0f : 0.0f;
        }
      }
      const auto q = [&] {
        if constexpr (P::kHoldQueries) {
          tile::RegisterOperand<D> held;
          tile::load_operand(held, m.q[q_state.stage], group * 64, 0, thread);
          tile::wgmma_fence(held);
          return held;
        } else {
          return tile::along_columns(m.q[q_state.stage]).template part_at<64>(group);
        }
      }();
      const auto soften = [&](tile::Accumulator<P::kKeys>& s, const KeyVisit& v) {
        if constexpr (Cap) {
#pragma unroll
          for (int i = 0; i < P::kKeys / 2; ++i) s.x[i] = tile::tanh_fast(s.x[i] * a.transform);
        }
        if (v.partial) hide(s, v, a.sight, query, thread);
      };
      // Rows of a tile that are a neighbour's must not reach the sums, not even times 0. Every consumer clears all of
      // them, so that none waits for the other.
      const auto clean = [&](int stage, const KeyVisit& v) {
        if (v.count == P::kKeys) return;
        tile::zero_rows_outside<tile::kWarpgroup>(m.v[stage], 0, v.count, thread);
        tile::fence_async_shared();
        tile::barrier_sync<tile::kWarpgroup>(own);
      };

      tile::RegisterOperand<P::kKeys> p;
      float rescale[2];
      if (count > 0) {
        tile::Accumulator<P::kKeys> s;
        int stage = kv_state.stage;
        m.k_full[stage].wait(kv_state.parity());
        KeyVisit visit = m.visit[stage];
        tile::wgmma_fence();
        tile::multiply(s, q, tile::along_columns(m.k[stage]));
        tile::wgmma_commit();
        if (written >= 0) release_queries(written);
        written = -1;
        tile::wgmma_wait<0>();
        m.k_empty[stage].arrive();
        soften(s, visit);
        update(s, softmax, rescale, a.unit);
        tile::round_to_operand(p, s);

        for (int j = 1; j < count; ++j) {
          const std::uint32_t parity = kv_state.parity();
          const int before = stage;
          kv_state.advance();
          stage = kv_state.stage;
          m.k_full[stage].wait(kv_state.parity());
          m.v_full[before].wait(parity);
          clean(before, visit);
          visit = m.visit[stage];
          tile::wgmma_fence(o, p);
          tile::multiply(s, q, tile::along_columns(m.k[stage]));
          tile::wgmma_commit();
          tile::multiply_add(o, p, tile::along_rows(m.v[before]));
          tile::wgmma_commit();
          tile::wgmma_wait<1>();
          m.k_empty[stage].arrive();
          soften(s, visit);
          update(s, softmax, rescale, a.unit);
          tile::wgmma_wait<0>();
          release(m.v_empty[before]);
#pragma unroll
          for (int i = 0; i < D_V / 2; ++i) o.x[i] *= rescale[i / 2 % 2];
          tile::round_to_operand(p, s);
        }
        m.v_full[stage].wait(kv_state.parity());
        clean(stage, visit);
        tile::wgmma_fence(o, p);
        tile::multiply_add(o, p, tile::along_rows(m.v[stage]));
        tile::wgmma_commit();
        tile::wgmma_wait<0>();
        release(m.v_empty[stage]);
        kv_state.advance();
      }

      // The output goes through this group's rows of the query tile, which nothing reads any more.
      auto& staging = reinterpret_cast<tile::SharedTile<kForwardRows, D_V>&>(m.q[q_state.stage]);
      static_assert(D_V <= D, "the output is staged where the queries were");
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float mass = tile::reduce_quad<tile::Sum>(softmax.mass[r]);
        const float inverse = mass == 0.0f ? 0.0f : 1.0f / mass;
#pragma unroll
        for (int i = 0; i < D_V / 8; ++i) {
          o.x[4 * i + 2 * r] *= inverse;
          o.x[4 * i + 2 * r + 1] *= inverse;
        }
        const int row = query + 8 * r - t.position;
        if (thread % 4 == 0 && row < t.count) {
          a.lse[static_cast<std::int64_t>(t.row + row) * a.H_Q + head] =
              mass == 0.0f ? -INFINITY : (softmax.top[r] * a.unit + tile::log2_fast(mass)) * tile::kLn2;
        }
      }
      tile::store_rounded(o, staging, group * 64, 0, thread);
      tile::fence_async_shared();
      const bool whole = t.count == kForwardRows && a.copy_out;  // read before the item is given back
      tile::barrier_sync<tile::kWarpgroup>(own);
      if (whole) {
        if (thread == 0) {
#pragma unroll
          for (int c = 0; c < D_V; c += tile::kPanel) {
            if (c >= a.D_V) break;
            auto& panel = reinterpret_cast<tile::SharedTile<64, tile::kPanel>&>(staging.chunk(group * 64, c));
            tile::store_tile(o_map, panel, c, t.row + group * 64, head);
          }
          tile::commit_stores();
        }
      } else {
        constexpr int kChunks = D_V / 8;
#pragma unroll 1
        for (int i = thread; i < 64 * kChunks; i += tile::kWarpgroup) {
          const int row = group * 64 + i / kChunks, column = i % kChunks * 8;
          if (row < t.count && column < a.D_V) {
            tile::store16(a.o + (static_cast<std::int64_t>(t.row + row) * a.H_Q + head) * a.D_V + column,
                          staging.chunk(row, column));
          }
        }
        tile::fence_async_shared();
        tile::barrier_sync<tile::kWarpgroup>(own);
      }
      if constexpr (P::kQueryStages > 1) {
        written = q_state.stage;
      } else {
        release_queries(q_state.stage);
      }
    }
    if (thread == 0) tile::wait_stores<0>();
  }
#else
  tile::unavailable();
#endif
}

}  // namespace weft::attention_cuda
