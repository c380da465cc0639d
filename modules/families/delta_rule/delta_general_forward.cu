// The delta rule forwards on CUDA for any widths, in fp32.
//
// pairs: parallel over chunks and value heads, what the rows of a chunk are to each other: P and B.
// walk:  parallel over documents, heads and blocks of value columns, in order over chunks: outputs and states.
#include "autograd/carver.h"
#include "autograd/cuda/map_cuda.cuh"
#include "modules/families/delta_rule/delta_general.cuh"

namespace weft {
namespace delta_general {
namespace {

constexpr std::size_t kPairsFloats = (kLevels + 3) * kTile + 2 * kSquare + kRows;

// Each thread has 4 x 4 pairs: rows and columns 4 (thread / 16) .. and 4 (thread % 16) ..
template <class T>
__global__ void __launch_bounds__(kThreads) pairs_kernel(DeltaRuleProblem p, Pairs pairs) {
  extern __shared__ float shared[];
  float *factors = shared, *k = factors + kLevels * kTile, *q = k + kTile, *g = q + kTile, *A = g + kTile,
        *B = A + kSquare, *beta = B + kSquare;
  const Chunk chunk = p.chunks[blockIdx.x];
  if (chunk.begin >= chunk.end) return;
  const ChunkRows rows(p, chunk, static_cast<int>(blockIdx.y));
  const int D = static_cast<int>(p.d_k), n = rows.n, thread = static_cast<int>(threadIdx.x);
  const int I = thread / 16 * 4, J = thread % 16 * 4;
  float sum_A[4][4] = {}, sum_P[4][4] = {};
  for (int first = 0; first < D; first += kSlice) {
    __syncthreads();
    load_slice(static_cast<const T*>(p.k) + rows.key, rows.ld_key, n, D, first, k);
    load_slice(static_cast<const T*>(p.q) + rows.key, rows.ld_key, n, D, first, q);
    for (int e = thread; e < kRows * kSlice; e += kThreads) {
      const int i = e / kSlice, x = e % kSlice;
      g[i * kLd + x] = i < n && first + x < D ? rows.decay(i, first + x) : 0.0f;
    }
    __syncthreads();
    level_factors(g, factors);
    __syncthreads();
    if (I > J) {
      const float* f = factors + level_of(I, J) * kTile;
      for (int x = 0; x < kSlice; ++x) {
        float key[4], query[4], column[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float decay = f[(I + e) * kLd + x];
          key[e] = k[(I + e) * kLd + x] * decay;
          query[e] = q[(I + e) * kLd + x] * decay;
          column[e] = k[(J + e) * kLd + x] * f[(J + e) * kLd + x];
        }
#pragma unroll
        for (int a = 0; a < 4; ++a) {
#pragma unroll
          for (int b = 0; b < 4; ++b) {
            sum_A[a][b] += key[a] * column[b];
            sum_P[a][b] += query[a] * column[b];
          }
        }
      }
    } else if (I == J) {
      for (int x = 0; x < kSlice; ++x) {
#pragma unroll
        for (int a = 0; a < 4; ++a) {
          const float key = k[(I + a) * kLd + x], query = q[(I + a) * kLd + x];
          sum_P[a][a] += query * key;
#pragma unroll
          for (int b = 0; b < a; ++b) {
            const float* f = factors + (a >= 2 && b < 2 ? 1 : 0) * kTile;
            const float column = k[(I + b) * kLd + x] * f[(I + b) * kLd + x] * f[(I + a) * kLd + x];
            sum_A[a][b] += key * column;
            sum_P[a][b] += query * column;
          }
        }
      }
    }
  }
  const std::int64_t at = pairs.at(blockIdx.x, p.H, blockIdx.y);
#pragma unroll
  for (int a = 0; a < 4; ++a) {
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      pairs.P[at + (I + a) * kRows + J + b] = I + a >= J + b ? static_cast<float>(p.scale) * sum_P[a][b] : 0.0f;
      A[(I + a) * kSquareLd + J + b] = I + a > J + b ? sum_A[a][b] : 0.0f;
    }
  }
  if (thread < kRows) {
    beta[thread] = thread < n ? static_cast<const float*>(p.beta)[rows.head + thread * rows.ld_head] : 0.0f;
  }
  __syncthreads();
  // (I + A diag(beta)) B = A by rows; four lanes share a column.
  const int column = thread / 4, part = thread % 4;
  for (int i = 0; i < kRows; ++i) {
    float sum = 0.0f;
    for (int j = column + 1 + part; j < i; j += 4) {
      sum += A[i * kSquareLd + j] * beta[j] * B[j * kSquareLd + column];
    }
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    if (part == 0) B[i * kSquareLd + column] = A[i * kSquareLd + column] - sum;
    __syncwarp();
  }
  __syncthreads();
  for (int e = thread; e < kRows * kRows; e += kThreads) pairs.B[at + e] = B[e / kRows * kSquareLd + e % kRows];
}

// What a walk leaves behind.
struct Kept {
  void* o = nullptr;         // [T, H, d_v] of the element type, or null: no outputs
  float* st = nullptr;       // [N, H, d_k, d_v] or null
  float* entries = nullptr;  // [chunk_count, H, d_k, d_v] or null
  float* errors = nullptr;   // [T, H, d_v] or null
};

template <class T>
__global__ void __launch_bounds__(kThreads) walk_kernel(DeltaRuleProblem p, Pairs pairs, Kept kept) {
  extern __shared__ float shared[];
  const int D = static_cast<int>(p.d_k), d_v = static_cast<int>(p.d_v), thread = static_cast<int>(threadIdx.x);
  float *S = shared, *rows = S + D * kLd, *total = rows + kRows * (D + 1), *U = total + D, *R = U + kTile,
        *B = R + kTile, *P = B + kSquare, *beta = P + kSquare;
  const int h = static_cast<int>(blockIdx.y);
  const std::int64_t n_document = blockIdx.x, first = blockIdx.z * kColumns;
  const std::int64_t state = (n_document * p.H + h) * D * p.d_v;
  const int y = own_column();
  const bool column_is_there = first + y < d_v;
  load_state(p.s0 == nullptr ? nullptr : static_cast<const float*>(p.s0) + state, D, d_v, first, S);
  for (std::int64_t c = p.document_offset[n_document]; c < p.document_offset[n_document + 1]; ++c) {
    const ChunkRows chunk(p, p.chunks[c], h);
    const int n = chunk.n;
    const bool last = c + 1 == p.document_offset[n_document + 1];
    const auto* keys = static_cast<const T*>(p.k) + chunk.key;
    __syncthreads();
    if (kept.entries != nullptr) {
      save_state(S, D, d_v, first, kept.entries + (c * p.H + h) * D * p.d_v, Write::overwrite);
    }
    load_square(pairs.B + pairs.at(c, p.H, h), B);
    if (kept.o != nullptr) load_square(pairs.P + pairs.at(c, p.H, h), P);
    if (thread < kRows) {
      beta[thread] = thread < n ? static_cast<const float*>(p.beta)[chunk.head + thread * chunk.ld_head] : 0.0f;
    }
    decayed_rows(chunk, D, keys, Reach::from_entry, 1.0f, rows, nullptr);
    __syncthreads();
    // W = R - B (beta R), R = V - K_in S; U = beta W.
    WarpRows W;
#pragma unroll
    for (int r = 0; r < kRowsPerWarp; ++r) {
      const int i = own_row(r);
      W[r] = i < n && column_is_there
                 ? to_float(static_cast<const T*>(p.v)[chunk.value + i * chunk.ld_value + first + y])
                 : 0.0f;
    }
    add_product(rows, S, D, -1.0f, W);
#pragma unroll
    for (int r = 0; r < kRowsPerWarp; ++r) R[own_row(r) * kLd + y] = beta[own_row(r)] * W[r];
    __syncthreads();
#pragma unroll
    for (int r = 0; r < kRowsPerWarp; ++r) {
      const int i = own_row(r);
      float sum = 0.0f;
#pragma unroll 2
      for (int j = 0; j < i; ++j) sum += B[i * kSquareLd + j] * R[j * kLd + y];
      W[r] -= sum;
      U[i * kLd + y] = beta[i] * W[r];
      if (kept.errors != nullptr && i < n && column_is_there) {
        kept.errors[chunk.value + i * chunk.ld_value + first + y] = W[r];
      }
    }
    if (kept.o != nullptr) {
      decayed_rows(chunk, D, static_cast<const T*>(p.q) + chunk.key, Reach::from_entry, static_cast<float>(p.scale),
                   rows, nullptr);
      __syncthreads();
      WarpRows O = {};
      add_product(rows, S, D, 1.0f, O);
#pragma unroll
      for (int r = 0; r < kRowsPerWarp; ++r) {
        const int i = own_row(r);
        for (int j = 0; j <= i; ++j) O[r] += P[i * kSquareLd + j] * U[j * kLd + y];
        if (i < n && column_is_there) {
          static_cast<T*>(kept.o)[chunk.value + i * chunk.ld_value + first + y] = from_float<T>(O[r]);
        }
      }
    }
    if (last && kept.st == nullptr) continue;
    __syncthreads();
    decayed_rows(chunk, D, keys, Reach::to_exit, 1.0f, rows, total);
    __syncthreads();
    add_outer_product(rows, U, n, D, 1.0f, total, S);
  }
  __syncthreads();
  if (kept.st != nullptr) save_state(S, D, d_v, first, kept.st + state, Write::overwrite);
}

void walk(const DeltaRuleProblem& p, const Pairs& pairs, const Kept& kept, const Launch& launch) {
  dispatch_cuda(p.dtype, "delta_rule", [&]<class T>() {
    launch_kernel(walk_kernel<T>, walk_grid(p), walk_floats(p) * sizeof(float), launch, p, pairs, kept);
  });
}

}  // namespace

void make_pairs(const DeltaRuleProblem& p, const Pairs& pairs, const Launch& launch) {
  const dim3 grid(static_cast<unsigned>(p.chunk_count), static_cast<unsigned>(p.H));
  dispatch_cuda(p.dtype, "delta_rule", [&]<class T>() {
    launch_kernel(pairs_kernel<T>, grid, kPairsFloats * sizeof(float), launch, p, pairs);
  });
}

void make_entries(const DeltaRuleProblem& p, const Pairs& pairs, float* entries, float* errors, const Launch& launch) {
  walk(p, pairs, {.entries = entries, .errors = errors}, launch);
}

}  // namespace delta_general

void delta_general_forward(const DeltaRuleForward& args, const Launch& launch) {
  auto* workspace = static_cast<float*>(launch.workspace);
  const std::int64_t squares = args.chunk_count * args.H * delta_general::kRows * delta_general::kRows;
  const delta_general::Pairs pairs{.B = workspace, .P = workspace + squares};
  delta_general::make_pairs(args, pairs, launch);
  delta_general::walk(args, pairs, {.o = args.o, .st = static_cast<float*>(args.st)}, launch);
}

std::size_t delta_general_forward_workspace(const DeltaRuleForward& args) {
  return static_cast<std::size_t>(2 * args.chunk_count * args.H * delta_general::kRows * delta_general::kRows) *
         sizeof(float);
}

}  // namespace weft
