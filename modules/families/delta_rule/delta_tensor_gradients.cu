// The gradients of queries, keys, decays and betas with tensor cores: parallel over chunks and key heads, whose value
// heads follow each other. Sixteen warps have 16 rows and 32 channels each.
#include "autograd/tile/reduce.cuh"
#include "modules/families/delta_rule/delta_tensor_gradients.cuh"

namespace weft::delta_tensor {
namespace gradients {
namespace {

// Tiles of the value columns; U = beta W and dR = beta Y are rounded once more. dbeta_i = <Y_i, W_i> on the way.
__device__ void load_columns(const DeltaRuleBackward& a, const GradientSources& from, const ChunkRows& chunk,
                             std::int64_t state, Shared& shared) {
  Columns& to = shared.columns;
  const auto* d_o = static_cast<const bf16*>(a.d_o) + chunk.value;
  copy_rows_async<kD, kThreads>(to.S, kLd, from.entries + state, kD, kD, kD);
  copy_rows_async<kD, kThreads>(to.dS, kLd, from.dexits + state, kD, kD, kD);
  copy_rows_async<kD, kThreads>(to.d_o, kLd, d_o, chunk.ld_value, kC, chunk.n);
  tile::commit_copies();
  constexpr int kPieces = kD / 8;
#pragma unroll
  for (int e = threadIdx.x; e < kC * kPieces; e += kThreads) {
    const int i = e / kPieces, y = e % kPieces * 8;
    const bool valid = i < chunk.n;
    const std::int64_t at = chunk.value + (valid ? i : 0) * chunk.ld_value + y;
    const auto W = tile::load16_if(valid, from.W + at), Y = tile::load16_if(valid, from.Y + at);
    tile::Vector16<bf16> U, dR;
    float dbeta = 0.0f;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      dbeta += W.get(j) * Y.get(j);
      U.set(j, shared.beta[i] * W.get(j));
      dR.set(j, shared.beta[i] * Y.get(j));
    }
    tile::store16(to.U + i * kLd + y, U);
    tile::store16(to.dR + i * kLd + y, dR);
    dbeta = tile::reduce_lanes<tile::Sum, kPieces>(dbeta);
    if (a.dbeta == nullptr || !valid || y != 0) continue;
    const float value[1] = {dbeta};
    store_pack(static_cast<float*>(a.dbeta) + chunk.head + i * chunk.ld_head, value, a.write_dbeta);
  }
  tile::wait_copies<0>();
}

// dP = tril(dO U^T), dB = -stril(dR U^T): one block [16 x 16] for a warp.
__device__ void score_gradients(Shared& shared) {
  const int warp = static_cast<int>(threadIdx.x) / 32, I = warp % 4, J = warp / 4;
  if (J > I) return;
  const SharedMatrix outputs(shared.columns.d_o, kLd), values(shared.columns.dR, kLd), updates(shared.columns.U, kLd);
  FragmentC P[2] = {}, B[2] = {};
#pragma unroll
  for (int y = 0; y < kD; y += 16) {
    FragmentB b[2];
    load_b_transposed(b, updates, J * kBlock, y);
    const FragmentA from_outputs = load_a(outputs, I * kBlock, y), from_values = load_a(values, I * kBlock, y);
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      mma(P[t], from_outputs, b[t]);
      mma(B[t], from_values, b[t]);
    }
  }
#pragma unroll
  for (int t = 0; t < 2; ++t) {
#pragma unroll
    for (int e = 0; e < 4; e += 2) {
      const int i = I * kBlock + fragment_row(e), j = J * kBlock + 8 * t + fragment_column();
      const bool low = i > j, high = i > j + 1;
      store_pair(shared.dP + i * kSquareLd + j, {low ? P[t].x[e] : 0.0f, high ? P[t].x[e + 1] : 0.0f});
      store_pair(shared.dB + i * kSquareLd + j, {low ? -B[t].x[e] : 0.0f, high ? -B[t].x[e + 1] : 0.0f});
      if (i == j) shared.diagonal[i] = P[t].x[e];
      if (i == j + 1) shared.diagonal[i] = P[t].x[e + 1];
    }
  }
}

// A warp's rows times states: dO S^T, dR S^T and U dS'^T.
__device__ __forceinline__ void state_gradients(const Columns& in, int row, int channel, WarpTile& outputs,
                                                WarpTile& values, WarpTile& updates) {
#pragma unroll 1
  for (int y = 0; y < kD; y += 16) {
    const FragmentA d_o = load_a(SharedMatrix(in.d_o, kLd), row, y), dR = load_a(SharedMatrix(in.dR, kLd), row, y),
                    U = load_a(SharedMatrix(in.U, kLd), row, y);
#pragma unroll
    for (int t = 0; t < kTiles; t += 2) {
      FragmentB S[2], dS[2];
      load_b_transposed(S, SharedMatrix(in.S, kLd), channel + 8 * t, y);
      load_b_transposed(dS, SharedMatrix(in.dS, kLd), channel + 8 * t, y);
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        mma(outputs[t + u], d_o, S[u]);
        mma(values[t + u], dR, S[u]);
        mma(updates[t + u], U, dS[u]);
      }
    }
  }
}

// alive[x] = <S_x, dS'_x> over the value columns; four lanes a channel.
__device__ void living_states(const Columns& in, float* alive) {
  const int x = static_cast<int>(threadIdx.x) / 4, part = static_cast<int>(threadIdx.x) % 4;
  float sum = 0.0f;
#pragma unroll
  for (int piece = part; piece < kD / 8; piece += 4) {
    const auto S = tile::load16(in.S + x * kLd + piece * 8), dS = tile::load16(in.dS + x * kLd + piece * 8);
#pragma unroll
    for (int j = 0; j < 8; ++j) sum += S.get(j) * dS.get(j);
  }
  sum = tile::reduce_lanes<tile::Sum, 4>(sum);
  if (part == 0) alive[x] = sum;
}

// Where the gradients of queries and keys go; sums over the value heads of a key head wait in fp32.
struct KeyTargets {
  float *sum_dq, *sum_dk;  // [T, H_K, D]
  int member, group;       // value heads of the key head
};

__device__ __forceinline__ void store_rows(void* gradient, Write write, float* sums, const KeyTargets& targets,
                                           const ChunkRows& chunk, int block, int channel, FragmentC (&values)[2]) {
  for_pair(channel, [&](int t, int e, int r, int x) {
    const int i = block * kBlock + r;
    if (i >= chunk.n) return;
    const std::int64_t target = chunk.key + i * chunk.ld_key + x;
    if (targets.member > 0) add(values[t], e, load_pair(sums + target));
    const float pair[2] = {values[t].x[e], values[t].x[e + 1]};
    if (targets.member + 1 < targets.group) {
      store_pack(sums + target, pair);
    } else if (gradient != nullptr) {
      store_pack(static_cast<bfloat16*>(gradient) + target, pair, write);
    }
  });
}

template <int kSize>
__device__ inline float2 parked(const float (&values)[kSize][kThreads], int e) {
  return {values[e][threadIdx.x], values[e + 1][threadIdx.x]};
}

// Everything for two tiles of the warp's channels. outputs: dO S^T on entry, what dg sums on return; values: dR S^T.
template <int kPair>
__device__ __forceinline__ void gather(const DeltaRuleBackward& a, Shared& shared, const ChunkRows& chunk,
                                       const KeyTargets& targets, int block, int warp_channel, WarpTile& outputs,
                                       const WarpTile& values) {
  const auto* q = static_cast<const bf16*>(a.q) + chunk.key;
  const auto* k = static_cast<const bf16*>(a.k) + chunk.key;
  const auto scale = static_cast<float>(a.scale);
  const int channel = warp_channel + 8 * kPair;
  Gathered to;
  float2 left_of[2] = {{0.0f, 0.0f}, {0.0f, 0.0f}};
  for_pair(channel, [&](int t, int e, int r, int x) {
    const int i = block * kBlock + r;
    const int own_at = min(i, chunk.n - 1) * chunk.ld_key + x;  // rows from n on take part in nothing
    const float2 own_q = load_pair(q + own_at), own_k = load_pair(k + own_at);
    const float2 sum = load_pair(shared.channels.log_sums + i * kLdSums + x);
    float2 entry_decay = exp2_pair(sum), exit_decay = exp2_pair(load_pair(&shared.decays.log_total[block][x]) - sum);
#pragma unroll 1
    for (int b = 0; b < block; ++b) entry_decay = entry_decay * load_pair(&shared.decays.total[b][x]);
#pragma unroll 1
    for (int b = block + 1; b < kBlocks; ++b) exit_decay = exit_decay * load_pair(&shared.decays.total[b][x]);
    const float2 query = scale * (entry_decay * at(outputs[kPair + t], e));
    const float2 reader = -1.0f * (entry_decay * (kPair == 0 ? at(values[t], e) : parked(shared.values, t * 4 + e)));
    const float2 leaver = exit_decay * parked(shared.updates, (kPair + t) * 4 + e);
    const float diagonal = shared.diagonal[i] * scale;
    const float2 left = own_k * leaver;
    put(to.dq[t], e, query + diagonal * own_k);
    put(to.dk[t], e, reader + leaver + diagonal * own_q);
    put(to.rows[t], e, own_q * query + own_k * reader - left);
    left_of[t] = left_of[t] + left;
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
  pair_gradients(shared, chunk, q, k, scale, block, channel, to);
  store_rows(a.dq, a.write_dq, targets.sum_dq, targets, chunk, block, channel, to.dq);
  store_rows(a.dk, a.write_dk, targets.sum_dk, targets, chunk, block, channel, to.dk);
  outputs[kPair] = to.rows[0];
  outputs[kPair + 1] = to.rows[1];
}

// dg_t = alive e^(G_n) + sum_(i >= t) rows_i + sum of left, by four threads a channel; per head, the channels' sum.
__device__ void decay_gradients(const DeltaRuleBackward& a, const ChunkRows& chunk, Shared& shared) {
  DecaySums& sums = shared.sums;
  const int x = static_cast<int>(threadIdx.x) % kD, block = static_cast<int>(threadIdx.x) / kD;
  float total = 0.0f;
  for (int r = 0; r < kBlock; ++r) total += sums.rows[(block * kBlock + r) * kLdSums + x];
  sums.totals[block][x] = total;
  __syncthreads();
  total = shared.alive[x];
  for (int b = 0; b < kBlocks; ++b) total *= shared.decays.total[b][x];
  for (int b = 0; b < kBlocks; ++b) total += shared.left[b][x];
  for (int b = kBlocks - 1; b > block; --b) total += sums.totals[b][x];
  for (int r = kBlock - 1; r >= 0; --r) {
    float& row = sums.rows[(block * kBlock + r) * kLdSums + x];
    row = total += row;
  }
  auto* dg = static_cast<float*>(a.dg);
  for (int r = 0; r < kBlock; ++r) {
    const int i = block * kBlock + r;
    const float value = sums.rows[i * kLdSums + x];
    if (chunk.channel_step == 1) {
      if (i >= chunk.n) break;
      const float values[1] = {value};
      store_pack(dg + chunk.head * kD + i * chunk.ld_g + x, values, a.write_dg);
    } else {
      const float sum = tile::reduce_lanes<tile::Sum>(value);
      if (threadIdx.x % 32 == 0) sums.heads[i][x / 32] = sum;
    }
  }
  if (chunk.channel_step == 1) return;
  __syncthreads();
  const int i = static_cast<int>(threadIdx.x);
  if (i >= chunk.n) return;
  const float values[1] = {sums.heads[i][0] + sums.heads[i][1] + sums.heads[i][2] + sums.heads[i][3]};
  store_pack(dg + chunk.head + i * chunk.ld_head, values, a.write_dg);
}

__global__ void __launch_bounds__(kThreads) gradients_kernel(DeltaRuleBackward a, GradientSources from) {
  extern __shared__ __align__(16) unsigned char memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const Chunk entry = a.chunks[blockIdx.x];
  if (entry.begin >= entry.end) return;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
  const int block = warp % kBlocks, row = block * kBlock, channel = warp / kBlocks * kChannels;
  const int group = static_cast<int>(a.H) / static_cast<int>(a.H_K);
  for (int member = 0; member < group; ++member) {
    const int h = static_cast<int>(blockIdx.y) * group + member;
    const ChunkRows chunk(a, entry, h);
    const KeyTargets targets{from.sum_dq, from.sum_dk, member, group};
    __syncthreads();
    if (thread < kC) shared.beta[thread] = from.records[blockIdx.x * a.H + h].beta[thread];
    if (thread < kBlocks) shared.decays.unbounded[thread] = 0;
    __syncthreads();
    load_columns(a, from, chunk, (blockIdx.x * a.H + h) * kD * kD, shared);
    __syncthreads();
    score_gradients(shared);
    living_states(shared.columns, shared.alive);
    WarpTile outputs = {}, values = {}, updates = {};
    state_gradients(shared.columns, row, channel, outputs, values, updates);
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        shared.updates[t * 4 + e][thread] = updates[t].x[e];
        if (t >= 2) shared.values[(t - 2) * 4 + e][thread] = values[t].x[e];
      }
    }
    __syncthreads();  // columns become channels
    make_levels<kBlock / 2>(chunk, static_cast<const bf16*>(a.q) + chunk.key, static_cast<const bf16*>(a.k) + chunk.key,
                            static_cast<float>(a.scale), shared.channels.tiles, shared.decays, shared.halves,
                            shared.channels.log_sums, kLdSums, nullptr);
    __syncthreads();
    gather<0>(a, shared, chunk, targets, block, channel, outputs, values);
    gather<2>(a, shared, chunk, targets, block, channel, outputs, values);
    if (a.dg == nullptr) continue;
    __syncthreads();  // channels become sums
#pragma unroll
    for (int t = 0; t < kTiles; t += 2) {
      for_pair(channel + 8 * t, [&](int u, int e, int r, int x) {
        *reinterpret_cast<float2*>(shared.sums.rows + (row + r) * kLdSums + x) = at(outputs[t + u], e);
      });
    }
    __syncthreads();
    decay_gradients(a, chunk, shared);
  }
}

}  // namespace
}  // namespace gradients

std::size_t largest_shared_bytes() {
  return sizeof(gradients::Shared);
}

void chunk_gradients(const DeltaRuleBackward& a, const GradientSources& from, const Launch& launch) {
  if (a.chunk_count == 0) return;
  WEFT_CUDA_CALL(cudaFuncSetAttribute(reinterpret_cast<const void*>(gradients::gradients_kernel),
                                      cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(sizeof(gradients::Shared))));
  const dim3 grid(static_cast<unsigned>(a.chunk_count), static_cast<unsigned>(a.H_K));
  gradients::gradients_kernel<<<grid, gradients::kThreads, sizeof(gradients::Shared), cuda_stream(launch.stream)>>>(
      a, from);
  WEFT_CHECK_LAUNCH();
}

}  // namespace weft::delta_tensor
