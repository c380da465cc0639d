// What a chunk of the delta rule makes before the states are known, with tensor cores: decayed keys and queries, the
// products P and A between rows, and B = A (I + diag(beta) A)^-1, which is solved in fp32. Parallel over chunks and
// value heads.
#include "modules/families/delta_rule/delta_tensor.cuh"

namespace weft::delta_tensor {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kLdSolve = kC + 1;

struct Shared {
  union {
    LevelTiles tiles;
    struct {
      float A[kC * kLdSolve], B[kC * kLdSolve];
    } solve;
  };
  BlockDecays decays;
  float beta[kC];
};

// One block [16 x 16] of A or P: its place, and where its rows and columns lie in the tiles.
struct Product {
  bool of_queries;
  int I, J;
  SharedMatrix rows, columns;
  int row, column;
};
constexpr int kProducts = 20;

__device__ Product product(const LevelTiles& tiles, int index) {
  const bool queries = index % 2 == 1;
  const bf16 *rows, *columns;
  int I, J, row, column;
  if (index < 8) {
    I = 2 + index / 4;
    J = index / 2 % 2;
    rows = queries ? tiles.q : tiles.k32;
    columns = tiles.k32;
    row = I * kBlock;
    column = J * kBlock;
  } else if (index < 12) {
    I = index < 10 ? 1 : 3;
    J = I - 1;
    rows = queries ? tiles.q : tiles.k16;
    columns = tiles.k16;
    row = queries ? query_row16(I) : I * kBlock;
    column = J * kBlock;
  } else {
    I = J = (index - 12) / 2;
    rows = tiles.diagonal[I][queries ? 2 : 0];
    columns = tiles.diagonal[I][1];
    row = column = 0;
  }
  return {queries, I, J, SharedMatrix(rows, kLd), SharedMatrix(columns, kLd), row, column};
}

// The pairs i >= j of a block whose decays have no common reference, summed by two warps; each lane keeps kKept pairs.
constexpr int kPairs = kBlock * (kBlock + 1) / 2, kKept = 3;
struct PairSums {
  float A[kKept], P[kKept];
};
__device__ inline int2 pair_at(int index) {
  int i = 0;
  while ((i + 1) * (i + 2) / 2 <= index) ++i;
  return {i, index - i * (i + 1) / 2};
}
__device__ void sum_pairs(const ChunkRows& chunk, const bf16* q, const bf16* k, const float* sums, int block, int half,
                          PairSums& kept) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int slot = 0; slot < kKept; ++slot) {
    for (int l = 0; l < 32; ++l) {
      const int index = slot * 32 + l;
      if (index >= kPairs / 2) break;
      const int2 pair = pair_at(half * (kPairs / 2) + index);
      const int i = block * kBlock + pair.x, j = block * kBlock + pair.y;
      float A = 0.0f, P = 0.0f;
      if (i < chunk.n) {
        for (int x = lane; x < kD; x += 32) {
          const float decay = tile::exp2_fast(sums[pair.x * kD + x] - sums[pair.y * kD + x]);
          const float column = tile::to_float(k[j * chunk.ld_key + x]) * decay;
          A += tile::to_float(k[i * chunk.ld_key + x]) * column;
          P += tile::to_float(q[i * chunk.ld_key + x]) * column;
        }
      }
#pragma unroll
      for (int mask = 16; mask > 0; mask /= 2) {
        A += __shfl_xor_sync(0xffffffffu, A, mask);
        P += __shfl_xor_sync(0xffffffffu, P, mask);
      }
      if (lane == l) {
        kept.A[slot] = A;
        kept.P[slot] = P;
      }
    }
  }
}

// (I + A diag(beta)) B = A, by blocks: those on the diagonal by substitution; then, with increasing distance from it,
//   Z_IJ = A_IJ - sum_(J <= K < I) A_IK diag(beta_K) B_KJ,  B_IJ = Z_IJ - B_II diag(beta_I) Z_IJ,
// because I - B_II diag(beta_I) is the inverse of the block on the diagonal.
__device__ void solve(const float* A, const float* beta, float* B) {
  const int thread = static_cast<int>(threadIdx.x);
  {
    const int first = thread / 64 * kBlock, column = thread % 64 / 4, part = thread % 4;
    for (int i = 0; i < kBlock; ++i) {
      const float* row = A + (first + i) * kLdSolve + first;
      float sum = 0.0f;
      for (int j = column + 1 + part; j < i; j += 4) {
        sum += row[j] * beta[first + j] * B[(first + j) * kLdSolve + first + column];
      }
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      if (part == 0) B[(first + i) * kLdSolve + first + column] = column < i ? row[column] - sum : 0.0f;
      __syncwarp();
    }
  }
  const int r = thread / kBlock, column = thread % kBlock;
  for (int distance = 1; distance < kBlocks; ++distance) {
    __syncthreads();
    float z[kBlocks - 1];
#pragma unroll
    for (int J = 0; J < kBlocks - 1; ++J) {
      const int I = J + distance;
      if (I >= kBlocks) break;
      const float* row = A + (I * kBlock + r) * kLdSolve;
      const int at = J * kBlock + column;
      float sum = row[at];
#pragma unroll 8
      for (int k = J * kBlock; k < I * kBlock; ++k) sum -= row[k] * beta[k] * B[k * kLdSolve + at];
      z[J] = sum;
      B[(I * kBlock + r) * kLdSolve + at] = sum;
    }
    __syncthreads();
#pragma unroll
    for (int J = 0; J < kBlocks - 1; ++J) {
      const int I = J + distance;
      if (I >= kBlocks) break;
      const float* row = B + (I * kBlock + r) * kLdSolve;
      for (int k = I * kBlock; k < I * kBlock + r; ++k)
        z[J] -= row[k] * beta[k] * B[k * kLdSolve + J * kBlock + column];
    }
    __syncthreads();
#pragma unroll
    for (int J = 0; J < kBlocks - 1; ++J) {
      const int I = J + distance;
      if (I >= kBlocks) break;
      B[(I * kBlock + r) * kLdSolve + J * kBlock + column] = z[J];
    }
  }
}

__global__ void __launch_bounds__(kThreads, 2) operands_kernel(DeltaRuleProblem p, Operands* records) {
  extern __shared__ __align__(16) unsigned char memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const Chunk entry = p.chunks[blockIdx.x];
  if (entry.begin >= entry.end) return;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const ChunkRows chunk(p, entry, static_cast<int>(blockIdx.y));
  Operands& record = records[blockIdx.x * p.H + blockIdx.y];
  const auto* q = static_cast<const bf16*>(p.q) + chunk.key;
  const auto* k = static_cast<const bf16*>(p.k) + chunk.key;
  const auto scale = static_cast<float>(p.scale);
  if (thread < kBlocks) shared.decays.unbounded[thread] = 0;
  if (thread < kC) {
    const float beta = thread < chunk.n ? static_cast<const float*>(p.beta)[chunk.head + thread * chunk.ld_head] : 0.0f;
    shared.beta[thread] = beta;
    record.beta[thread] = beta;
  }
  __syncthreads();
  make_levels<kBlock>(chunk, q, k, scale, shared.tiles, shared.decays, nullptr, nullptr, 0, &record);
  __syncthreads();
  if (thread < kD) {
    float sum = 0.0f;
    for (int b = 0; b < kBlocks; ++b) sum += shared.decays.log_total[b][thread];
    record.total[thread] = tile::exp2_fast(sum);
  }

  constexpr int kRounds = (kProducts + kWarps - 1) / kWarps;
  FragmentC sums[kRounds][2] = {};
  PairSums pairs;
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const int index = round * kWarps + warp;
    if (index >= kProducts) break;
    const Product of = product(shared.tiles, index);
    if (of.I == of.J && shared.decays.unbounded[of.I]) continue;
#pragma unroll
    for (int x = 0; x < kD; x += 16) {
      const FragmentA a = load_a(of.rows, of.row, x);
      FragmentB b[2];
      load_b_transposed(b, of.columns, of.column, x);
      mma(sums[round][0], a, b[0]);
      mma(sums[round][1], a, b[1]);
    }
  }
  const int own_block = warp / 2;
  const bool own_pairs = shared.decays.unbounded[own_block] != 0;
  if (own_pairs) sum_pairs(chunk, q, k, shared.tiles.sums(own_block), own_block, warp % 2, pairs);
  __syncthreads();  // tiles become the matrices of the solve
  float *A = shared.solve.A, *B = shared.solve.B;
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const int index = round * kWarps + warp;
    if (index >= kProducts) break;
    const bool queries = index % 2 == 1;
    const int I = index < 8 ? 2 + index / 4 : index < 12 ? (index < 10 ? 1 : 3) : (index - 12) / 2;
    const int J = index < 8 ? index / 2 % 2 : index < 12 ? I - 1 : I;
    if (I == J && shared.decays.unbounded[I]) continue;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int e = 0; e < 4; e += 2) {
        const int i = I * kBlock + fragment_row(e), j = J * kBlock + half * 8 + fragment_column();
        const float* sum = sums[round][half].x + e;
        if (queries) {
          store_pair(&record.P[i * kC + j], {i >= j ? sum[0] : 0.0f, i >= j + 1 ? sum[1] : 0.0f});
        } else {
          A[i * kLdSolve + j] = i > j ? sum[0] : 0.0f;
          A[i * kLdSolve + j + 1] = i > j + 1 ? sum[1] : 0.0f;
        }
      }
    }
  }
  if (own_pairs) {
    const int first = own_block * kBlock;
#pragma unroll
    for (int slot = 0; slot < kKept; ++slot) {
      const int index = slot * 32 + lane;
      if (index >= kPairs / 2) continue;
      const int2 pair = pair_at(warp % 2 * (kPairs / 2) + index);
      record.P[(first + pair.x) * kC + first + pair.y] = __float2bfloat16_rn(scale * pairs.P[slot]);
      if (pair.x > pair.y) {
        A[(first + pair.x) * kLdSolve + first + pair.y] = pairs.A[slot];
        record.P[(first + pair.y) * kC + first + pair.x] = __float2bfloat16_rn(0.0f);
      }
    }
  }
  __syncthreads();
  solve(A, shared.beta, B);
  __syncthreads();
  for (int e = thread; e < kC * kC / 2; e += kThreads) {
    const int i = e / (kC / 2), j = e % (kC / 2) * 2;
    const bool right = j / kBlock > i / kBlock;
    store_pair(&record.B[i * kC + j], {right ? 0.0f : B[i * kLdSolve + j], right ? 0.0f : B[i * kLdSolve + j + 1]});
    if (right) store_pair(&record.P[i * kC + j], {0.0f, 0.0f});
  }
}

}  // namespace

void make_operands(const DeltaRuleProblem& p, Operands* records, const Launch& launch) {
  if (p.chunk_count == 0) return;
  WEFT_CUDA_CALL(cudaFuncSetAttribute(reinterpret_cast<const void*>(operands_kernel),
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(sizeof(Shared))));
  const dim3 grid(static_cast<unsigned>(p.chunk_count), static_cast<unsigned>(p.H));
  operands_kernel<<<grid, kThreads, sizeof(Shared), cuda_stream(launch.stream)>>>(p, records);
  WEFT_CHECK_LAUNCH();
}

}  // namespace weft::delta_tensor
