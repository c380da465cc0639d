// The walks over the states of the delta rule with tensor cores: in order over the chunks of a document, in parallel
// over documents, heads and blocks of 32 value columns. Eight warps keep the state in registers, 16 key channels each;
// a chunk is three products deep, with a barrier after each, and the next chunk's operands arrive meanwhile.
#include "modules/families/delta_rule/delta_tensor.cuh"

namespace weft::delta_tensor {
namespace {

constexpr int kThreads = 256;
constexpr int kColumns = 32, kColumnsLd = kColumns + 8;
constexpr int kTiles = kColumns / 8;  // of a state's registers

// A chunk's operands; `columns` are the block's columns of the values, or of what arrives at the outputs.
struct Stage {
  bf16 k_entry[kC * kLd], k_exit[kC * kLd], q_entry[kC * kLd];
  bf16 B[kC * kSquareLd], P[kC * kSquareLd];
  bf16 columns[kC * kColumnsLd];
  float total[kD], beta[kC];
};
struct Shared {
  Stage stages[2];
  bf16 state[kD * kColumnsLd];
  bf16 right[kC * kColumnsLd];   // right-hand sides times beta
  bf16 update[kC * kColumnsLd];  // U, or -dR
};

__device__ void prefetch(Stage& to, const Operands& from, const ChunkRows& chunk, const bf16* columns, bool queries) {
  copy_rows_async<kD, kThreads>(to.k_entry, kLd, from.k_entry, kD, kC, kC);
  copy_rows_async<kD, kThreads>(to.k_exit, kLd, from.k_exit, kD, kC, kC);
  copy_rows_async<kC, kThreads>(to.B, kSquareLd, from.B, kC, kC, kC);
  if (queries) {
    copy_rows_async<kD, kThreads>(to.q_entry, kLd, from.q_entry, kD, kC, kC);
    copy_rows_async<kC, kThreads>(to.P, kSquareLd, from.P, kC, kC, kC);
  }
  copy_rows_async<kColumns, kThreads>(to.columns, kColumnsLd, columns, chunk.ld_value, kC, chunk.n);
  constexpr int kFloats = (kD + kC) / 4;  // pieces of `total` and `beta`, which follow each other on both sides
  if (threadIdx.x < kFloats) tile::copy16_async(to.total + threadIdx.x * 4, from.total + threadIdx.x * 4, true);
  tile::commit_copies();
}

// The index-th chunk of a document, without a look at the table, which the chain would wait for.
__device__ inline ChunkRows chunk_of(const DeltaRuleProblem& p, int first_token, int end_token, std::int64_t index,
                                     int h) {
  const int begin = first_token + static_cast<int>(index) * kC;
  return ChunkRows(p, Chunk{.document = 0, .index = 0, .begin = begin, .end = min(begin + kC, end_token)}, h);
}

// sum[0], sum[1] += rows [row, row + 16) of `left` times 16 columns of `right`, contracted over `steps` x 16.
__device__ inline void multiply(FragmentC (&sum)[2], const bf16* left, int ld_left, int row, const bf16* right,
                                int column, int first, int end) {
#pragma unroll 4
  for (int s = first; s < end; ++s) {
    const FragmentA a = load_a(SharedMatrix(left, ld_left), row, 16 * s);
    FragmentB b[2];
    load_b(b, SharedMatrix(right, kColumnsLd), 16 * s, column);
    mma(sum[0], a, b[0]);
    mma(sum[1], a, b[1]);
  }
}
// All of kD, as two chains of half the length.
__device__ inline void multiply_channels(FragmentC (&sum)[2], const bf16* left, int row, const bf16* right,
                                         int column) {
  FragmentC second[2] = {};
#pragma unroll
  for (int s = 0; s < kD / 16; ++s) {
    const FragmentA a = load_a(SharedMatrix(left, kLd), row, 16 * s);
    FragmentB b[2];
    load_b(b, SharedMatrix(right, kColumnsLd), 16 * s, column);
    FragmentC* const chain = s % 2 == 0 ? sum : second;
    mma(chain[0], a, b[0]);
    mma(chain[1], a, b[1]);
  }
#pragma unroll
  for (int t = 0; t < 2; ++t) {
#pragma unroll
    for (int e = 0; e < 4; ++e) sum[t].x[e] += second[t].x[e];
  }
}
// The same for the transpose of `left`: rows of the product are its columns.
__device__ inline void multiply_transposed(FragmentC (&sum)[2], const bf16* left, int ld_left, int row,
                                           const bf16* right, int column, int first, int end) {
  for (int s = first; s < end; ++s) {
    const FragmentA a = load_a_transposed(SharedMatrix(left, ld_left), 16 * s, row);
    FragmentB b[2];
    load_b(b, SharedMatrix(right, kColumnsLd), 16 * s, column);
    mma(sum[0], a, b[0]);
    mma(sum[1], a, b[1]);
  }
}
// The warp's 16 rows of a state += the transpose of left [C, D] times right [C, columns].
__device__ inline void add_to_state(FragmentC (&state)[kTiles], const bf16* left, int row, const bf16* right) {
#pragma unroll
  for (int s = 0; s < kC / 16; ++s) {
    const FragmentA a = load_a_transposed(SharedMatrix(left, kLd), 16 * s, row);
#pragma unroll
    for (int t = 0; t < kTiles; t += 2) {
      FragmentB b[2];
      load_b(b, SharedMatrix(right, kColumnsLd), 16 * s, 8 * t);
      mma(state[t], a, b[0]);
      mma(state[t + 1], a, b[1]);
    }
  }
}

// f(register pair, row, column) for the registers of the warp's rows of a state, and of its [16 x 16] part of a chunk's
// columns.
template <class F>
__device__ inline void for_state(F&& f) {
  const int row = static_cast<int>(threadIdx.x) / 32 * 16;
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int e = 0; e < 4; e += 2) f(t, e, row + fragment_row(e), 8 * t + fragment_column());
  }
}
template <class F>
__device__ inline void for_rows(int row, int column, F&& f) {
#pragma unroll
  for (int t = 0; t < 2; ++t) {
#pragma unroll
    for (int e = 0; e < 4; e += 2) f(t, e, row + fragment_row(e), column + 8 * t + fragment_column());
  }
}

__device__ inline void load_state(FragmentC (&S)[kTiles], const float* from) {
  for_state([&](int t, int e, int x, int y) {
    const float2 pair = from == nullptr ? float2{0.0f, 0.0f} : load_pair(from + x * kD + y);
    S[t].x[e] = pair.x;
    S[t].x[e + 1] = pair.y;
  });
}
__device__ inline void save_state(const FragmentC (&S)[kTiles], float* to, Write write) {
  for_state([&](int t, int e, int x, int y) {
    const float values[2] = {S[t].x[e], S[t].x[e + 1]};
    store_pack(to + x * kD + y, values, write);
  });
}
// Rounded, for the products with it, and (unless null) for backward.
__device__ inline void round_state(const FragmentC (&S)[kTiles], bf16* tile, bf16* kept) {
  for_state([&](int t, int e, int x, int y) {
    const float2 pair{S[t].x[e], S[t].x[e + 1]};
    store_pair(tile + x * kColumnsLd + y, pair);
    if (kept != nullptr) store_pair(kept + x * kD + y, pair);
  });
}
__device__ inline void decay_state(FragmentC (&S)[kTiles], const float* total) {
  for_state([&](int t, int e, int x, int) {
    S[t].x[e] *= total[x];
    S[t].x[e + 1] *= total[x];
  });
}

struct Kept {
  bf16* o = nullptr;        // [T, H, D] or null: no outputs
  float* st = nullptr;      // [N, H, D, D] or null
  bf16* entries = nullptr;  // [chunk_count, H, D, D] and
  bf16* errors = nullptr;   // [T, H, D], where there are no outputs
};

template <bool kOutputs>
__global__ void __launch_bounds__(kThreads) walk_kernel(DeltaRuleProblem p, const Operands* records, Kept kept) {
  extern __shared__ __align__(16) unsigned char memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const std::int64_t document = blockIdx.z;
  const int h = static_cast<int>(blockIdx.y);
  const int first = static_cast<int>(blockIdx.x) * kColumns;
  const std::int64_t begin = p.document_offset[document], end = p.document_offset[document + 1];
  const std::int64_t state = (document * p.H + h) * kD * kD + first;
  const int warp = static_cast<int>(threadIdx.x) / 32, row = warp % 4 * 16, column = warp / 4 * 16, blocks = warp % 4;
  const auto* v = static_cast<const bf16*>(p.v) + first;
  const int first_token = p.cu_seqlens[document], end_token = p.cu_seqlens[document + 1];
  const auto rows_of = [&](std::int64_t c) { return chunk_of(p, first_token, end_token, c - begin, h); };
  const auto fetch = [&](std::int64_t c) {
    const ChunkRows chunk = rows_of(c);
    prefetch(shared.stages[(c - begin) % 2], records[c * p.H + h], chunk, v + chunk.value, kOutputs);
  };
  FragmentC S[kTiles];
  load_state(S, p.s0 == nullptr ? nullptr : static_cast<const float*>(p.s0) + state);
  if (begin < end) fetch(begin);
  for (std::int64_t c = begin; c < end; ++c) {
    const ChunkRows chunk = rows_of(c);
    const Stage& in = shared.stages[(c - begin) % 2];
    round_state(S, shared.state, kOutputs ? nullptr : kept.entries + (c * p.H + h) * kD * kD + first);
    tile::wait_copies<0>();
    __syncthreads();
    if (c + 1 < end) fetch(c + 1);
    // R = V - K_in S.
    FragmentC R[2] = {}, O[2] = {};
    multiply_channels(R, in.k_entry, row, shared.state, column);
    for_rows(row, column, [&](int t, int e, int i, int y) {
      const float2 values = load_pair(in.columns + i * kColumnsLd + y);
      R[t].x[e] = values.x - R[t].x[e];
      R[t].x[e + 1] = values.y - R[t].x[e + 1];
      store_pair(shared.right + i * kColumnsLd + y, in.beta[i] * float2{R[t].x[e], R[t].x[e + 1]});
    });
    if (kOutputs) multiply_channels(O, in.q_entry, row, shared.state, column);
    __syncthreads();
    // W = R - B (beta R), U = beta W.
    FragmentC sum[2] = {};
    multiply(sum, in.B, kSquareLd, row, shared.right, column, 0, blocks + 1);
    for_rows(row, column, [&](int t, int e, int i, int y) {
      const float2 W = float2{R[t].x[e], R[t].x[e + 1]} - float2{sum[t].x[e], sum[t].x[e + 1]};
      store_pair(shared.update + i * kColumnsLd + y, in.beta[i] * W);
      if (!kOutputs && i < chunk.n) store_pair(kept.errors + chunk.value + i * chunk.ld_value + first + y, W);
    });
    __syncthreads();
    decay_state(S, in.total);
    add_to_state(S, in.k_exit, warp * 16, shared.update);
    if (!kOutputs) continue;
    multiply(O, in.P, kSquareLd, row, shared.update, column, 0, blocks + 1);
    for_rows(row, column, [&](int t, int e, int i, int y) {
      if (i >= chunk.n) return;
      store_pair(kept.o + chunk.value + i * chunk.ld_value + first + y, {O[t].x[e], O[t].x[e + 1]});
    });
  }
  if (kept.st != nullptr) save_state(S, kept.st + state, Write::overwrite);
}

__global__ void __launch_bounds__(kThreads)
    retreat_kernel(DeltaRuleBackward a, const Operands* records, bf16* dexits, bf16* kept_Y) {
  extern __shared__ __align__(16) unsigned char memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const std::int64_t document = blockIdx.z;
  const int h = static_cast<int>(blockIdx.y);
  const int first = static_cast<int>(blockIdx.x) * kColumns;
  const std::int64_t begin = a.document_offset[document], end = a.document_offset[document + 1];
  const std::int64_t state = (document * a.H + h) * kD * kD + first;
  const int warp = static_cast<int>(threadIdx.x) / 32, row = warp % 4 * 16, column = warp / 4 * 16, block = warp % 4;
  const auto* d_o = static_cast<const bf16*>(a.d_o) + first;
  const int first_token = a.cu_seqlens[document], end_token = a.cu_seqlens[document + 1];
  const auto rows_of = [&](std::int64_t c) { return chunk_of(a, first_token, end_token, c - begin, h); };
  const auto fetch = [&](std::int64_t c) {
    const ChunkRows chunk = rows_of(c);
    prefetch(shared.stages[(end - c) % 2], records[c * a.H + h], chunk, d_o + chunk.value, true);
  };
  FragmentC dS[kTiles];
  load_state(dS, a.dst == nullptr ? nullptr : static_cast<const float*>(a.dst) + state);
  if (begin < end) fetch(end - 1);
  for (std::int64_t c = end - 1; c >= begin; --c) {
    const ChunkRows chunk = rows_of(c);
    const Stage& in = shared.stages[(end - c) % 2];
    round_state(dS, shared.state, dexits + (c * a.H + h) * kD * kD + first);
    tile::wait_copies<0>();
    __syncthreads();
    if (c > begin) fetch(c - 1);
    // dU = K_out dS' + P^T dO.
    FragmentC Y[2] = {}, sum[2] = {};
    multiply_channels(Y, in.k_exit, row, shared.state, column);
    multiply_transposed(Y, in.P, kSquareLd, row, in.columns, column, block, kBlocks);
    for_rows(row, column, [&](int t, int e, int i, int y) {
      store_pair(shared.right + i * kColumnsLd + y, in.beta[i] * float2{Y[t].x[e], Y[t].x[e + 1]});
    });
    __syncthreads();
    // Y = dU - B^T (beta dU), dR = beta Y.
    multiply_transposed(sum, in.B, kSquareLd, row, shared.right, column, block, kBlocks);
    for_rows(row, column, [&](int t, int e, int i, int y) {
      const float2 gradient = float2{Y[t].x[e], Y[t].x[e + 1]} - float2{sum[t].x[e], sum[t].x[e + 1]};
      const float2 dR = in.beta[i] * gradient;
      store_pair(shared.update + i * kColumnsLd + y, -1.0f * dR);
      if (i >= chunk.n) return;
      const std::int64_t at = chunk.value + i * chunk.ld_value + first + y;
      store_pair(kept_Y + at, gradient);
      if (a.dv == nullptr) return;
      const float values[2] = {dR.x, dR.y};
      store_pack(static_cast<bfloat16*>(a.dv) + at, values, a.write_dv);
    });
    __syncthreads();
    // dS = diag(e^G_n) dS' + Q_in^T dO - K_in^T dR.
    decay_state(dS, in.total);
    add_to_state(dS, in.q_entry, warp * 16, in.columns);
    add_to_state(dS, in.k_entry, warp * 16, shared.update);
  }
  if (a.ds0 != nullptr) save_state(dS, static_cast<float*>(a.ds0) + state, a.write_ds0);
}

template <class... Parameters, class... Arguments>
void launch_walk(void (*kernel)(Parameters...), const DeltaRuleProblem& p, const Launch& launch,
                 const Arguments&... arguments) {
  if (p.N == 0) return;
  WEFT_CUDA_CALL(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(sizeof(Shared))));
  const dim3 grid(kD / kColumns, static_cast<unsigned>(p.H), static_cast<unsigned>(p.N));
  kernel<<<grid, kThreads, sizeof(Shared), cuda_stream(launch.stream)>>>(arguments...);
  WEFT_CHECK_LAUNCH();
}

}  // namespace

void walk_states(const DeltaRuleProblem& p, const Operands* records, void* o, void* st, bf16* entries, bf16* errors,
                 const Launch& launch) {
  const Kept kept{.o = static_cast<bf16*>(o), .st = static_cast<float*>(st), .entries = entries, .errors = errors};
  launch_walk(entries == nullptr ? walk_kernel<true> : walk_kernel<false>, p, launch, p, records, kept);
}

void retreat_states(const DeltaRuleBackward& a, const Operands* records, bf16* dexits, bf16* Y, const Launch& launch) {
  launch_walk(retreat_kernel, a, launch, a, records, dexits, Y);
}

}  // namespace weft::delta_tensor
