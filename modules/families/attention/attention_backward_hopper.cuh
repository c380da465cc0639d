// Backward kernel of attention.h for Hopper: bf16, one tile of 128 keys of one key/value head at a time.
//
// The tile stays while the queries that see it pass by, tile by tile from the last, and for each the heads of the
// group. Two warpgroups own 64 keys each. Scores are made transposed, [keys][queries], so that p and dz are the left
// operands of dv and dk straight from registers; dz also goes to shared memory, from where each warpgroup makes one
// half of the queries' dq, over all 128 keys. Five products a step:
//   s = k q^T    dp = v d_o^T    dv += p^T d_o    dk += dz^T q    dq = dz k
// While exponentials run, dp is being made; while dz is made, dv; while dq is handed over, the next step's s.
//
// dq is summed in fp32 in device memory by the copy engine. Tiles of keys add to a tile of queries in ascending order:
// each waits for its turn, which is a counter for every piece of dq. Items are given out in the same order, and all
// walk their queries from the last, so that predecessors are ahead by themselves.
#pragma once

#include "autograd/tile/tma.cuh"
#include "autograd/tile/wgmma.cuh"
#include "modules/families/attention/visibility.cuh"

namespace weft::attention_cuda {

namespace tile = weft::tile;

inline constexpr int kBackwardThreads = 3 * tile::kWarpgroup;
inline constexpr int kQueries = kBackwardRows;  // of a step
// Floats of dq that one warpgroup makes in one step: half of the columns.
template <int D>
inline constexpr int kPiece = kQueries* D / 2;

struct BackwardArgs {
  const AttentionKeyTile* key_tiles;
  const AttentionQueryTile* query_tiles;  // of kQueries rows, in row order
  std::int32_t key_count, query_count;    // of tiles
  std::int32_t H_Q, H_KV;
  std::int32_t D, D_V;  // of the tensors
  Sight sight;
  float transform, unit;  // as in the forward kernel
  float scale;            // of logits
  const float* stats;     // [H_Q][tiles][2][kQueries]: lse in powers of 2, delta
  float* dq_sum;          // [H_Q][tiles][2][kPiece]
  int* turns;             // [H_Q][tiles][2], start at 0
  int* counter;           // starts at 0
  tile::bf16 *dk, *dv;
  Write write_dk, write_dv;
};

// A work item: a tile of keys and the steps in which it meets tiles of queries. Neighbours in the table walk side by
// side, so that what they read and add to is in the cache: without a window all start at the document's last queries
// and take the heads of a tile in turn; with one they start at queries of their own, and take one head after the other,
// so that a neighbour comes past the same queries soon. Keys that every query sees are the first that all others wait
// for: they walk forwards.
struct KeyItem {
  AttentionKeyTile tile;
  std::int32_t kv_head;      // -1: no more work
  std::int32_t first, last;  // tiles of queries of the document
  std::int32_t heads_outer, forwards;

  __device__ void set_walk(const Sight& sight) {
    const bool windowed = sight.window < 1 << 30;
    const bool pinned = tile.anchor != 0 || (windowed && tile.position < sight.sinks);
    first = tile.anchor != 0 ? 0 : max(0, tile.position - tile.query_position) / kQueries;
    last = tile.query_tiles - 1;
    const int end = tile.position + kKeyRows + sight.window - 1 - tile.query_position;  // first query that sees no key
    if (!pinned) last = end <= 0 ? -1 : min(last, (end - 1) / kQueries);
    heads_outer = windowed && !pinned ? 1 : 0;
    forwards = pinned ? 1 : 0;
  }
  __device__ int steps(int G) const { return max(0, last - first + 1) * G; }
  // Tile of queries (of all of the row's) and head of the group of step j.
  __device__ int2 step(int j, int G) const {
    const int tiles = last - first + 1;
    const int i = heads_outer != 0 ? j % tiles : j / G;
    return {tile.query_tile + (forwards != 0 ? first + i : last - i), heads_outer != 0 ? j / tiles : j % G};
  }
};
struct StepInfo {
  std::int32_t position, count;
};

template <int D>
struct BackwardMemory {
  tile::SharedTile<kKeyRows, D> k, v;
  tile::SharedTile<kQueries, D> q[2], d_o[2];
  tile::SharedTile<kKeyRows, kQueries> dz[2];
  alignas(128) float dq[2][kPiece<D>];
  alignas(16) float stats[2][2 * kQueries];
  KeyItem item;
  StepInfo step[2];
  tile::Barrier kv_full, kv_empty;
  tile::Barrier q_full[2], q_empty[2], d_o_full[2], d_o_empty[2];
  tile::Barrier dq_full[2], dq_empty[2];  // of the two warpgroups
};

// Where elements 4c .. 4c + 3 of a thread's accumulator lie in a piece of dq: in the order in which threads hold them.
__host__ __device__ inline int piece_offset(int thread, int c) {
  return (c * tile::kWarpgroup + thread) * 4;
}

__device__ inline int load_acquire(const int* from) {
  int value;
  asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}
__device__ inline void store_release(int* to, int value) {
  asm volatile("st.release.gpu.global.b32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}

// The thread that loads.
template <int D>
__device__ void produce(BackwardMemory<D>& m, const tile::TileMap<kKeyRows, 3>& k_map,
                        const tile::TileMap<kKeyRows, 3>& v_map, const tile::TileMap<kQueries, 3>& q_map,
                        const tile::TileMap<kQueries, 3>& d_o_map, const BackwardArgs& a) {
  constexpr std::uint32_t kTile = kQueries * D * 2, kStats = 2 * kQueries * 4;
  const int G = a.H_Q / a.H_KV;
  tile::PipelineState<1> kv;
  tile::PipelineState<2> state;
  const int items = a.key_count * a.H_KV;
  for (int next = atomicAdd(a.counter, 1); next < items; next = atomicAdd(a.counter, 1)) {
    KeyItem item;
    item.tile = a.key_tiles[next / a.H_KV];
    item.kv_head = next % a.H_KV;
    if (item.tile.count <= 0) continue;
    item.set_walk(a.sight);
    m.kv_empty.wait(kv.parity() ^ 1);
    m.item = item;
    m.kv_full.arrive_expect(2 * kKeyRows * D * 2);
    tile::load_tile(m.k, k_map, m.kv_full, 0, item.tile.row, item.kv_head);
    tile::load_tile(m.v, v_map, m.kv_full, 0, item.tile.row, item.kv_head);
    kv.advance();
    const int steps = item.steps(G);
    for (int j = 0; j < steps; ++j, state.advance()) {
      const int2 step = item.step(j, G);
      const AttentionQueryTile t = a.query_tiles[step.x];
      const int head = item.kv_head * G + step.y, s = state.stage;
      m.q_empty[s].wait(state.parity() ^ 1);
      m.step[s] = {t.position, t.count};
      m.q_full[s].arrive_expect(kTile + kStats);
      tile::load_tile(m.q[s], q_map, m.q_full[s], 0, t.row, head);
      tile::load_bytes(m.stats[s], a.stats + (static_cast<std::int64_t>(head) * a.query_count + step.x) * 2 * kQueries,
                       kStats, m.q_full[s]);
      m.d_o_empty[s].wait(state.parity() ^ 1);
      m.d_o_full[s].arrive_expect(kTile);
      tile::load_tile(m.d_o[s], d_o_map, m.d_o_full[s], 0, t.row, head);
    }
  }
  m.kv_empty.wait(kv.parity() ^ 1);
  m.item.kv_head = -1;
  m.kv_full.arrive();
}

// The thread that adds one warpgroup's pieces to dq. It passes the turn on one piece late, so that a piece is on its
// way while the next one is handed over.
template <int D>
__device__ void add_pieces(BackwardMemory<D>& m, const BackwardArgs& a, int group) {
  const int G = a.H_Q / a.H_KV;
  std::uint32_t kv_parity = 0, parity = 0;
  for (;; kv_parity ^= 1) {
    m.kv_full.wait(kv_parity);
    const KeyItem item = m.item;
    if (item.kv_head < 0) return;
    int* previous = nullptr;
    int previous_turn = 0;
    const auto pass_on = [&] {
      if (previous == nullptr) return;
      tile::fence_async_global();
      store_release(previous, previous_turn + 1);
    };
    const int steps = item.steps(G);
    for (int j = 0; j < steps; ++j, parity ^= 1) {
      const int2 step = item.step(j, G);
      const AttentionQueryTile t = a.query_tiles[step.x];
      const int turn = KeyWalk<kKeyRows>(t, a.sight).turn(item.tile.position, item.tile.anchor != 0, t);
      const std::int64_t piece =
          ((static_cast<std::int64_t>(item.kv_head) * G + step.y) * a.query_count + step.x) * 2 + group;
      m.dq_full[group].wait(parity);
      float* const to = a.dq_sum + piece * kPiece<D>;
      if (turn == 0) {
        tile::store_bytes(to, m.dq[group], kPiece<D> * 4);
      } else {
        while (load_acquire(a.turns + piece) != turn) {
        }
        tile::fence_async_global();
        tile::add_floats(to, m.dq[group], kPiece<D> * 4);
      }
      tile::commit_stores();
      tile::wait_stores<1>();
      pass_on();
      previous = a.turns + piece;
      previous_turn = turn;
      tile::wait_stores_read<0>();
      m.dq_empty[group].arrive();
    }
    tile::wait_stores<0>();
    pass_on();
    m.kv_empty.arrive();
  }
}

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

// A warpgroup that computes.
template <int D, bool Cap>
__device__ void consume(BackwardMemory<D>& m, const BackwardArgs& a, int group, int thread) {
  constexpr int kConsumerThreads = 2 * tile::kWarpgroup;
  const int G = a.H_Q / a.H_KV;
  tile::PipelineState<2> state;
  std::uint32_t kv_parity = 0, dq_parity = 0;
  int buffer = 0;
  const auto release = [&](tile::Barrier& barrier) {
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

    tile::Accumulator<D> dk, dv;
    tile::Accumulator<kQueries> s, dp;
    dk.fill(0.0f);
    dv.fill(0.0f);
    const auto k_rows = tile::along_columns(m.k).template part_at<64>(group);
    const auto v_rows = tile::along_columns(m.v).template part_at<64>(group);
    tile::Accumulator<D / 2> dq;
    const auto wait_for_room = [&] {
      m.dq_empty[group].wait(dq_parity ^ 1);
      dq_parity ^= 1;
    };
    const auto hand_over = [&] {
#pragma unroll
      for (int c = 0; c < D / 16; ++c) {
        *reinterpret_cast<float4*>(&m.dq[group][piece_offset(thread, c)]) = {dq.x[4 * c], dq.x[4 * c + 1],
                                                                             dq.x[4 * c + 2], dq.x[4 * c + 3]};
      }
      tile::fence_async_shared();
      m.dq_full[group].arrive();
    };
#pragma unroll 1
    for (int i = 0; i < steps; ++i, state.advance()) {
      const int stage = state.stage;
      m.q_full[stage].wait(state.parity());
      m.d_o_full[stage].wait(state.parity());
      const StepInfo step{uniform(m.step[stage].position), uniform(m.step[stage].count)};
      clean(m.q[stage], step.count);
      clean(m.d_o[stage], step.count);
      if (i > 0) wait_for_room();
      tile::wgmma_fence();
      tile::multiply(s, k_rows, tile::along_columns(m.q[stage]));
      tile::wgmma_commit();
      if (i > 0) hand_over();  // the step before's
      tile::wgmma_fence();
      tile::multiply(dp, v_rows, tile::along_columns(m.d_o[stage]));
      tile::wgmma_commit();
      tile::wgmma_wait<1>(s);

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
      tile::wgmma_fence(dv, p);
      tile::multiply_add(dv, p, tile::along_rows(m.d_o[stage]));
      tile::wgmma_commit();
      tile::wgmma_wait<1>(dp);

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
      tile::multiply(dq, tile::along_rows(m.dz[buffer]), tile::along_rows(m.k).template part_at<D / 2>(group));
      tile::wgmma_commit();
      tile::wgmma_wait<0>();
#pragma unroll
      for (int x = 0; x < D / 4; ++x) dq.x[x] *= a.scale;
      buffer ^= 1;
      release(m.q_empty[stage]);
      release(m.d_o_empty[stage]);
    }
    if (steps > 0) {
      wait_for_room();
      hand_over();
    }

    // Both warpgroups read all of k until here.
    tile::barrier_sync<kConsumerThreads>(1);
#pragma unroll
    for (int i = 0; i < D / 2; ++i) dk.x[i] *= a.scale;
    if (a.dk != nullptr) store_keys(dk, m.k, m.item, a.dk, a.H_KV, a.D, a.write_dk, group, thread);
    if (a.dv != nullptr) store_keys(dv, m.v, m.item, a.dv, a.H_KV, a.D_V, a.write_dv, group, thread);
    tile::fence_async_shared();
    m.kv_empty.arrive();
  }
}

template <int D, bool Cap>
__global__ void __launch_bounds__(kBackwardThreads, 1)
    backward_kernel(const __grid_constant__ tile::TileMap<kKeyRows, 3> k_map,
                    const __grid_constant__ tile::TileMap<kKeyRows, 3> v_map,
                    const __grid_constant__ tile::TileMap<kQueries, 3> q_map,
                    const __grid_constant__ tile::TileMap<kQueries, 3> d_o_map,
                    const __grid_constant__ BackwardArgs a) {
#ifdef WEFT_HOPPER
  extern __shared__ __align__(1024) char bytes[];
  auto& m = *reinterpret_cast<BackwardMemory<D>*>(bytes);
  if (threadIdx.x == 0) {
    m.kv_full.init(1);
    m.kv_empty.init(2 * tile::kWarpgroup + 2);
    for (int i = 0; i < 2; ++i) {
      m.q_full[i].init(1);
      m.d_o_full[i].init(1);
      m.q_empty[i].init(8);
      m.d_o_empty[i].init(8);
      m.dq_full[i].init(tile::kWarpgroup);
      m.dq_empty[i].init(1);
    }
    tile::fence_barrier_init();
  }
  __syncthreads();
  const int group = static_cast<int>(threadIdx.x) / tile::kWarpgroup;
  if (group == 0) {
    tile::shrink_registers<40>();
    if (threadIdx.x == 0) produce(m, k_map, v_map, q_map, d_o_map, a);
    if (threadIdx.x == 32) add_pieces(m, a, 0);
    if (threadIdx.x == 64) add_pieces(m, a, 1);
  } else {
    tile::grow_registers<232>();
    consume<D, Cap>(m, a, group - 1, static_cast<int>(threadIdx.x) % tile::kWarpgroup);
  }
#else
  tile::unavailable();
#endif
}

}  // namespace weft::attention_cuda
