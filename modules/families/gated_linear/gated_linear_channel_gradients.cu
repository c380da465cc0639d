// The gradients of queries, keys and decays per key channel with tensor cores: parallel over chunks and heads. Sixteen
// warps have 16 rows and a quarter of the channels each.
//
// dg is a suffix sum of rows minus columns, in which every pair that lies behind a token must cancel: both sides are
// taken from the same rounded operands, so that what is left over is the rounding of fp32 sums.
//
// D key channels, E value channels.
#include "autograd/cuda/cuda_check.cuh"
#include "autograd/cuda/pack.cuh"
#include "autograd/tile/async_copy.cuh"
#include "autograd/tile/reduce.cuh"
#include "modules/families/gated_linear/gated_linear_channels.cuh"

namespace weft::channels {
namespace {

constexpr int kThreads = 512;
constexpr int kScoreLd = kC + 8;

template <int D, int E>
struct Columns {  // everything along the value columns
  static constexpr int kLd = E + 8;
  bf16 d_o[kC * kLd], v[kC * kLd];
  bf16 S[D * kLd], dS[D * kLd];
};
template <int D>
struct Channels {  // everything along the key channels
  static constexpr int kSumsLd = D + 4;
  LevelTiles<D> tiles;
  float log_sums[kC * kSumsLd];
};
template <int D>
struct DecaySums {  // at the end
  static constexpr int kLd = D + 4;
  float rows[kC * kLd];
  float totals[kThreads / D][D];
};
template <int D, int E>
struct Shared {
  union {
    Columns<D, E> columns;
    Channels<D> channels;
    DecaySums<D> sums;
  };
  bf16 dP[kC * kScoreLd];  // strictly lower
  BlockDecays<D> decays;
  float diagonal[kC];  // of dP
  float alive[D];
  float left[kBlocks][D];  // what the keys of a block leave in the exit state, for dg
};

using tile::add;
using tile::at;
using tile::for_pair;
using tile::put;

// What a warp gathers for 16 rows and 16 channels.
struct Gathered {
  FragmentC dq[2], dk[2];
  FragmentC rows[2];  // dg is suffix sums of these
};

// dP = tril(dO V^T): one block [16 x 16] for a warp.
template <int D, int E>
__device__ void score_gradients(Shared<D, E>& shared) {
  const int warp = static_cast<int>(threadIdx.x) / 32, I = warp % 4, J = warp / 4;
  if (J > I) return;
  constexpr int kLd = Columns<D, E>::kLd;
  const SharedMatrix outputs(shared.columns.d_o, kLd), values(shared.columns.v, kLd);
  FragmentC P[2] = {};
#pragma unroll
  for (int y = 0; y < E; y += 16) {
    FragmentB b[2];
    load_b_transposed(b, values, J * kBlock, y);
    const FragmentA a = load_a(outputs, I * kBlock, y);
    mma(P[0], a, b[0]);
    mma(P[1], a, b[1]);
  }
#pragma unroll
  for (int t = 0; t < 2; ++t) {
#pragma unroll
    for (int e = 0; e < 4; e += 2) {
      const int i = I * kBlock + fragment_row(e), j = J * kBlock + 8 * t + fragment_column();
      store_pair(shared.dP + i * kScoreLd + j, {i > j ? P[t].x[e] : 0.0f, i > j + 1 ? P[t].x[e + 1] : 0.0f});
      if (i == j) shared.diagonal[i] = P[t].x[e];
      if (i == j + 1) shared.diagonal[i] = P[t].x[e + 1];
    }
  }
}

// A warp's rows times states: dO S^T and V dS'^T.
template <int D, int E, int kTiles>
__device__ __forceinline__ void state_gradients(const Columns<D, E>& in, int row, int channel,
                                                FragmentC (&outputs)[kTiles], FragmentC (&updates)[kTiles]) {
  constexpr int kLd = Columns<D, E>::kLd;
#pragma unroll 2
  for (int y = 0; y < E; y += 16) {
    const FragmentA d_o = load_a(SharedMatrix(in.d_o, kLd), row, y), v = load_a(SharedMatrix(in.v, kLd), row, y);
#pragma unroll
    for (int t = 0; t < kTiles; t += 2) {
      FragmentB S[2], dS[2];
      load_b_transposed(S, SharedMatrix(in.S, kLd), channel + 8 * t, y);
      load_b_transposed(dS, SharedMatrix(in.dS, kLd), channel + 8 * t, y);
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        mma(outputs[t + u], d_o, S[u]);
        mma(updates[t + u], v, dS[u]);
      }
    }
  }
}

// alive[x] = <S_x, dS'_x> over the value columns.
template <int D, int E>
__device__ void living_states(const Columns<D, E>& in, float* alive) {
  constexpr int kLanes = kThreads / D;  // of a channel
  const int x = static_cast<int>(threadIdx.x) / kLanes, part = static_cast<int>(threadIdx.x) % kLanes;
  float sum = 0.0f;
#pragma unroll
  for (int piece = part; piece < E / 8; piece += kLanes) {
    const auto S = tile::load16(in.S + x * (E + 8) + piece * 8), dS = tile::load16(in.dS + x * (E + 8) + piece * 8);
#pragma unroll
    for (int j = 0; j < 8; ++j) sum += S.get(j) * dS.get(j);
  }
  sum = tile::reduce_lanes<tile::Sum, kLanes>(sum);
  if (part == 0) alive[x] = sum;
}

// Rows [row, row + 16) of the scores' gradients times rows of keys [key, key + 16 steps), two tiles of channels.
template <int kLd>
__device__ inline void multiply_rows(const bf16* dP, int row, int score, const bf16* keys, int key, int steps,
                                     int channel, FragmentC (&sums)[2]) {
#pragma unroll
  for (int s = 0; s < steps; ++s) {
    const FragmentA a = load_a(SharedMatrix(dP, kScoreLd), row, score + 16 * s);
    FragmentB b[2];
    load_b(b, SharedMatrix(keys, kLd), key + 16 * s, channel);
    mma(sums[0], a, b[0]);
    mma(sums[1], a, b[1]);
  }
}
// The transpose: columns [row, row + 16) times rows of queries.
template <int kLd>
__device__ inline void multiply_columns(const bf16* dP, int row, int score, const bf16* queries, int query, int steps,
                                        int channel, FragmentC (&sums)[2]) {
#pragma unroll
  for (int s = 0; s < steps; ++s) {
    const FragmentA a = load_a_transposed(SharedMatrix(dP, kScoreLd), score + 16 * s, row);
    FragmentB b[2];
    load_b(b, SharedMatrix(queries, kLd), query + 16 * s, channel);
    mma(sums[0], a, b[0]);
    mma(sums[1], a, b[1]);
  }
}

// The pairs of a block whose decays have no common reference: one by one.
template <int D, int E>
__device__ __forceinline__ void single_pairs(const Shared<D, E>& shared, const ChunkRows<D>& chunk, float scale,
                                             int block, int channel, Gathered& to) {
  const float* sums = shared.channels.tiles.sums(block);
  const int first = block * kBlock;
  for_pair(channel, [&](int t, int first_register, int r, int first_channel) {
    if (first + r >= chunk.n) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int e = first_register + half, x = first_channel + half;
      const float own = sums[r * D + x];
      float query = 0.0f, writer = 0.0f;
#pragma unroll 1
      for (int other = 0; other < kBlock && first + other < chunk.n; ++other) {
        if (other == r) continue;
        const int i = first + max(r, other), j = first + min(r, other), from = (first + other) * chunk.stride + x;
        const float dP =
            tile::exp2_fast(-fabsf(own - sums[other * D + x])) * tile::to_float(shared.dP[i * kScoreLd + j]);
        if (other < r) {
          query += dP * tile::to_float(chunk.k[from]);
        } else {
          writer += dP * scale * tile::to_float(chunk.q[from]);
        }
      }
      const int from = (first + r) * chunk.stride + x;
      to.dq[t].x[e] += scale * query;
      to.dk[t].x[e] += writer;
      to.rows[t].x[e] += scale * tile::to_float(chunk.q[from]) * query - tile::to_float(chunk.k[from]) * writer;
    }
  });
}

// All pairs of the chunk, for two tiles of the warp's channels.
template <int D, int E>
__device__ __forceinline__ void pair_gradients(const Shared<D, E>& shared, const ChunkRows<D>& chunk, float scale,
                                               int block, int channel, Gathered& to) {
  constexpr int kLd = LevelTiles<D>::kLd, kSumsLd = Channels<D>::kSumsLd;
  const LevelTiles<D>& tiles = shared.channels.tiles;
  const BlockDecays<D>& decays = shared.decays;
  const float* log_sums = shared.channels.log_sums + block * kBlock * kSumsLd;
  const int row = block * kBlock;
  const auto from_start = [&](int r, int x) { return load_pair(log_sums + r * kSumsLd + x); };
  const auto to_end = [&](int r, int x) { return load_pair(&decays.log_total[block][x]) - from_start(r, x); };
  // As rows: `factor` brings the products to the row itself; `queries` are those that the scores were made of.
  const auto take_rows = [&](const FragmentC(&sums)[2], const bf16* queries, int query_row, auto&& factor) {
    for_pair(channel, [&](int t, int e, int r, int x) {
      const float2 own = at(sums[t], e);
      add(to.dq[t], e, scale * (factor(r, x) * own));
      add(to.rows[t], e, load_pair(queries + (query_row + r) * kLd + x) * own);
    });
  };
  const auto take_columns = [&](const FragmentC(&sums)[2], const bf16* keys, int key_row, auto&& factor) {
    for_pair(channel, [&](int t, int e, int r, int x) {
      const float2 own = at(sums[t], e);
      add(to.dk[t], e, factor(r, x) * own);
      add(to.rows[t], e, -1.0f * (load_pair(keys + (key_row + r) * kLd + x) * own));
    });
  };
  {
    FragmentC sums[2] = {};
    if (block >= 2) {
      multiply_rows<kLd>(shared.dP, row, 0, tiles.k32, 0, 2, channel, sums);
      take_rows(sums, tiles.q32, row - 2 * kBlock, [&](int r, int x) {
        const float2 f = exp2_pair(from_start(r, x));
        return block == 3 ? f * load_pair(&decays.total[2][x]) : f;
      });
    } else {
      multiply_columns<kLd>(shared.dP, row, 2 * kBlock, tiles.q32, 0, 2, channel, sums);
      take_columns(sums, tiles.k32, row, [&](int r, int x) {
        const float2 f = exp2_pair(to_end(r, x));
        return block == 0 ? f * load_pair(&decays.total[1][x]) : f;
      });
    }
  }
  {
    FragmentC sums[2] = {};
    const int own = block / 2 * kBlock;
    if (block % 2 == 1) {
      multiply_rows<kLd>(shared.dP, row, row - kBlock, tiles.k16, own, 1, channel, sums);
      take_rows(sums, tiles.q16, own, [&](int r, int x) { return exp2_pair(from_start(r, x)); });
    } else {
      multiply_columns<kLd>(shared.dP, row, row + kBlock, tiles.q16, own, 1, channel, sums);
      take_columns(sums, tiles.k16, own, [&](int r, int x) { return exp2_pair(to_end(r, x)); });
    }
  }
  if (decays.unbounded[block]) return single_pairs(shared, chunk, scale, block, channel, to);
  const bf16 *queries = tiles.diagonal[block][0], *keys = tiles.diagonal[block][1];
  FragmentC as_rows[2] = {}, as_columns[2] = {};
  multiply_rows<kLd>(shared.dP, row, row, keys, 0, 1, channel, as_rows);
  take_rows(as_rows, queries, 0, [&](int r, int x) { return exp2_pair(from_start(r, x) - from_start(0, x)); });
  multiply_columns<kLd>(shared.dP, row, row, queries, 0, 1, channel, as_columns);
  take_columns(as_columns, keys, 0, [&](int r, int x) { return exp2_pair(from_start(0, x) - from_start(r, x)); });
}

// Everything for two tiles of the warp's channels. outputs: dO S^T on entry, what dg sums on return; updates: V dS'^T.
template <int D, int E>
__device__ __forceinline__ void gather(const GatedLinearBackward& a, Shared<D, E>& shared, const ChunkRows<D>& chunk,
                                       std::int64_t base, int block, int channel, FragmentC* outputs,
                                       const FragmentC* updates) {
  const auto scale = static_cast<float>(a.scale);
  Gathered to;
  float2 left_of[2] = {{0.0f, 0.0f}, {0.0f, 0.0f}};
  for_pair(channel, [&](int t, int e, int r, int x) {
    const int i = block * kBlock + r;
    const int own_at = min(i, chunk.n - 1) * chunk.stride + x;  // rows from n on take part in nothing
    const float2 own_q = load_pair(chunk.q + own_at), own_k = load_pair(chunk.k + own_at);
    const float2 sum = load_pair(shared.channels.log_sums + i * Channels<D>::kSumsLd + x);
    float2 entry_decay = exp2_pair(sum), exit_decay = exp2_pair(load_pair(&shared.decays.log_total[block][x]) - sum);
#pragma unroll 1
    for (int b = 0; b < block; ++b) entry_decay = entry_decay * load_pair(&shared.decays.total[b][x]);
#pragma unroll 1
    for (int b = block + 1; b < kBlocks; ++b) exit_decay = exit_decay * load_pair(&shared.decays.total[b][x]);
    const float2 query = scale * (entry_decay * at(outputs[t], e));
    const float2 leaver = exit_decay * at(updates[t], e);
    const float diagonal = shared.diagonal[i] * scale;
    const float2 left = own_k * leaver;
    put(to.dq[t], e, query + diagonal * own_k);
    put(to.dk[t], e, leaver + diagonal * own_q);
    put(to.rows[t], e, own_q * query - left);
    if (i < chunk.n) left_of[t] = left_of[t] + left;
  });
  // Over the block's rows: two of each lane, eight lanes with the same channels.
#pragma unroll
  for (int t = 0; t < 2; ++t) {
#pragma unroll
    for (int mask = 4; mask < 32; mask *= 2) {
      left_of[t].x += __shfl_xor_sync(0xffffffffu, left_of[t].x, mask);
      left_of[t].y += __shfl_xor_sync(0xffffffffu, left_of[t].y, mask);
    }
    if (threadIdx.x % 32 < 4) {
      *reinterpret_cast<float2*>(&shared.left[block][channel + 8 * t + fragment_column()]) = left_of[t];
    }
  }
  pair_gradients(shared, chunk, scale, block, channel, to);
  const auto store = [&](void* gradient, Write write, const FragmentC(&values)[2]) {
    if (gradient == nullptr) return;
    for_pair(channel, [&](int t, int e, int r, int x) {
      const int i = block * kBlock + r;
      if (i >= chunk.n) return;
      const float pair[2] = {values[t].x[e], values[t].x[e + 1]};
      store_pack(static_cast<bfloat16*>(gradient) + base + i * chunk.stride + x, pair, write);
    });
  };
  store(a.dq, a.write_dq, to.dq);
  store(a.dk, a.write_dk, to.dk);
  outputs[0] = to.rows[0];
  outputs[1] = to.rows[1];
}

// dg_t = alive e^(G_n) + sum_(i >= t) rows_i + sum of left, by several threads a channel.
template <int D, int E>
__device__ void decay_gradients(const GatedLinearBackward& a, const ChunkRows<D>& chunk, std::int64_t base,
                                Shared<D, E>& shared) {
  constexpr int kParts = kThreads / D, kRows = kC / kParts, kLd = DecaySums<D>::kLd;
  DecaySums<D>& sums = shared.sums;
  const int x = static_cast<int>(threadIdx.x) % D, part = static_cast<int>(threadIdx.x) / D;
  float total = 0.0f;
  for (int r = 0; r < kRows; ++r) total += sums.rows[(part * kRows + r) * kLd + x];
  sums.totals[part][x] = total;
  __syncthreads();
  total = shared.alive[x];
  for (int b = 0; b < kBlocks; ++b) total *= shared.decays.total[b][x];
  for (int b = 0; b < kBlocks; ++b) total += shared.left[b][x];
  for (int other = kParts - 1; other > part; --other) total += sums.totals[other][x];
  auto* dg = static_cast<float*>(a.dg) + base + x;
  for (int r = kRows - 1; r >= 0; --r) {
    const int i = part * kRows + r;
    total += sums.rows[i * kLd + x];
    if (i >= chunk.n) continue;
    const float values[1] = {total};
    store_pack(dg + i * chunk.stride, values, a.write_dg);
  }
}

template <int D, int E>
__global__ void __launch_bounds__(kThreads, 1)
    gradients_kernel(GatedLinearBackward a, const bf16* entries, const bf16* dexits) {
  extern __shared__ __align__(16) unsigned char memory[];
  Shared<D, E>& shared = *reinterpret_cast<Shared<D, E>*>(memory);
  const Chunk entry = a.chunks[blockIdx.x];
  if (entry.begin >= entry.end) return;
  constexpr int kTiles = D / 32;  // of a warp
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, h = static_cast<int>(blockIdx.y);
  const int block = warp % kBlocks, channel = warp / kBlocks * (D / 4);
  const ChunkRows<D> chunk(a, entry, h);
  const std::int64_t keys = (static_cast<std::int64_t>(entry.begin) * a.H + h) * D;
  const std::int64_t values = (static_cast<std::int64_t>(entry.begin) * a.H + h) * E, stride = a.H * E;
  const std::int64_t state = (blockIdx.x * a.H + h) * D * E;
  if (thread < kBlocks) shared.decays.unbounded[thread] = 0;
  tile::copy_rows_async<E, kThreads>(shared.columns.d_o, E + 8, static_cast<const bf16*>(a.d_o) + values, stride, kC,
                                     chunk.n);
  tile::copy_rows_async<E, kThreads>(shared.columns.v, E + 8, static_cast<const bf16*>(a.v) + values, stride, kC,
                                     chunk.n);
  tile::copy_rows_async<E, kThreads>(shared.columns.S, E + 8, entries + state, E, D, D);
  tile::copy_rows_async<E, kThreads>(shared.columns.dS, E + 8, dexits + state, E, D, D);
  tile::commit_copies();
  tile::wait_copies<0>();
  __syncthreads();
  score_gradients(shared);
  living_states(shared.columns, shared.alive);
  FragmentC outputs[kTiles] = {}, updates[kTiles] = {};
  state_gradients(shared.columns, block * kBlock, channel, outputs, updates);
  __syncthreads();  // columns become channels
  make_levels<D, kC * D / 2 / kThreads>(chunk, static_cast<float>(a.scale), shared.channels.tiles, shared.decays,
                                        shared.channels.log_sums, Channels<D>::kSumsLd, nullptr, nullptr);
  __syncthreads();
#pragma unroll
  for (int t = 0; t < kTiles; t += 2) {
    gather(a, shared, chunk, keys, block, channel + 8 * t, outputs + t, updates + t);
  }
  if (a.dg == nullptr) return;
  __syncthreads();  // channels become sums
#pragma unroll
  for (int t = 0; t < kTiles; t += 2) {
    for_pair(channel + 8 * t, [&](int u, int e, int r, int x) {
      *reinterpret_cast<float2*>(shared.sums.rows + (block * kBlock + r) * DecaySums<D>::kLd + x) =
          at(outputs[t + u], e);
    });
  }
  __syncthreads();
  decay_gradients(a, chunk, keys, shared);
}

template <int D, int E>
void launch(const GatedLinearBackward& a, const bf16* entries, const bf16* dexits, cudaStream_t stream) {
  const auto kernel = gradients_kernel<D, E>;
  constexpr int kBytes = sizeof(Shared<D, E>);
  static_assert(kBytes <= 227 * 1024, "fits into shared memory");
  WEFT_CUDA_CALL(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const dim3 grid(static_cast<unsigned>(a.chunk_count), static_cast<unsigned>(a.H));
  kernel<<<grid, kThreads, kBytes, stream>>>(a, entries, dexits);
  WEFT_CHECK_LAUNCH();
}

}  // namespace

void chunk_gradients(const GatedLinearBackward& a, const bf16* entries, const bf16* dexits, const Launch& launch_on) {
  if (a.chunk_count == 0 || a.H == 0) return;
  cudaStream_t stream = cuda_stream(launch_on.stream);
  if (a.d_k == 128) {
    a.d_v == 128 ? launch<128, 128>(a, entries, dexits, stream) : launch<128, 64>(a, entries, dexits, stream);
  } else {
    a.d_v == 128 ? launch<64, 128>(a, entries, dexits, stream) : launch<64, 64>(a, entries, dexits, stream);
  }
}

}  // namespace weft::channels
