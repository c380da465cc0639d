// What the general CUDA kernels of the delta rule share: a chunk's rows, its decays, walks over the states.
//
// n tokens of a chunk, at most kRows; D = d_k key channels, taken in slices of kSlice; value columns in blocks of
// kColumns. All shared memory is fp32; rows are padded by one element against bank conflicts.
#pragma once

#include "autograd/carver.h"
#include "autograd/cuda/cuda_check.cuh"
#include "autograd/cuda/pack.cuh"
#include "modules/families/delta_rule/delta_chunk.cuh"

namespace weft::delta_general {

inline constexpr int kThreads = 256;
inline constexpr int kWarps = kThreads / 32;
inline constexpr int kRows = static_cast<int>(kDeltaCudaChunk);
inline constexpr int kSlice = 32;
inline constexpr int kColumns = 32;
inline constexpr int kLd = kSlice + 1;       // rows of slices and column blocks
inline constexpr int kSquareLd = kRows + 1;  // rows of [kRows, kRows]
inline constexpr int kRowsPerWarp = kRows / kWarps;
inline constexpr int kLevels = 6;          // blocks of 1, 2, ... 32 rows
inline constexpr int kTile = kRows * kLd;  // a slice of all rows
inline constexpr int kSquare = kRows * kSquareLd;

// What one chunk of one value head makes before the states are known: [kRows, kRows] each, for [chunk_count, H].
struct Pairs {
  float* B;  // A (I + diag(beta) A)^-1, strictly lower
  float* P;  // scaled, lower with its diagonal

  __device__ std::int64_t at(std::int64_t chunk, std::int64_t heads, std::int64_t head) const {
    return (chunk * heads + head) * kRows * kRows;
  }
};

// Which decay the rows of a chunk are multiplied with.
enum class Reach { from_entry, to_exit };

// to[i][x] = factor * rows[i][x] * e^(sum of g from the entry to i, inclusive; or after i to the exit), zero from row n
// on; rows of `to` are D + 1 apart. Sums run away from the end that is referred to, so that no difference of large sums
// is taken. total (unless null) = e^(sum of all g).
template <class T>
__device__ inline void decayed_rows(const ChunkRows& chunk, int D, const T* rows, Reach reach, float factor, float* to,
                                    float* total) {
  for (int x = threadIdx.x; x < D; x += kThreads) {
    float sum = 0.0f;
#pragma unroll 8
    for (int step = 0; step < kRows; ++step) {
      const int i = reach == Reach::from_entry ? step : kRows - 1 - step;
      float value = 0.0f;
      if (i < chunk.n) {
        const float g = chunk.decay(i, x);
        if (reach == Reach::from_entry) sum += g;
        value = factor * to_float(rows[i * chunk.ld_key + x]) * expf(sum);
        if (reach == Reach::to_exit) sum += g;
      }
      to[i * (D + 1) + x] = value;
    }
    if (total != nullptr) total[x] = expf(sum);
  }
}

// Columns [first, first + kColumns) of a state [D, d_v]: to shared memory or back; null stands for zeros.
__device__ inline void load_state(const float* from, int D, std::int64_t d_v, std::int64_t first, float* S) {
  for (int e = threadIdx.x; e < D * kColumns; e += kThreads) {
    const int x = e / kColumns, y = e % kColumns;
    S[x * kLd + y] = from != nullptr && first + y < d_v ? from[x * d_v + first + y] : 0.0f;
  }
}
__device__ inline void save_state(const float* S, int D, std::int64_t d_v, std::int64_t first, float* to, Write write) {
  for (int e = threadIdx.x; e < D * kColumns; e += kThreads) {
    const int x = e / kColumns, y = e % kColumns;
    if (first + y >= d_v) continue;
    float& target = to[x * d_v + first + y];
    target = write == Write::overwrite ? S[x * kLd + y] : target + S[x * kLd + y];
  }
}

// The warp's rows of a [kRows, kColumns] tile, one column for each lane.
using WarpRows = float[kRowsPerWarp];
__device__ inline int own_row(int r) {
  return static_cast<int>(threadIdx.x) / 32 * kRowsPerWarp + r;
}
__device__ inline int own_column() {
  return static_cast<int>(threadIdx.x) % 32;
}

// sum += sign * rows S; rows [kRows, D] are D + 1 apart.
__device__ inline void add_product(const float* rows, const float* S, int D, float sign, WarpRows& sum) {
  for (int x = 0; x < D; ++x) {
    const float s = sign * S[x * kLd + own_column()];
#pragma unroll
    for (int r = 0; r < kRowsPerWarp; ++r) sum[r] += rows[own_row(r) * (D + 1) + x] * s;
  }
}

// S (+)= sign * rows^T U, for n rows; S decays by `total` first unless that is null.
__device__ inline void add_outer_product(const float* rows, const float* U, int n, int D, float sign,
                                         const float* total, float* S) {
  constexpr int kGroup = 4;
  const int y = own_column();
  for (int first = static_cast<int>(threadIdx.x) / 32 * kGroup; first < D; first += kWarps * kGroup) {
    const int width = min(kGroup, D - first);
    float sum[kGroup] = {};
    for (int i = 0; i < n; ++i) {
      const float u = U[i * kLd + y];
#pragma unroll
      for (int e = 0; e < kGroup; ++e) sum[e] += rows[i * (D + 1) + first + min(e, width - 1)] * u;
    }
#pragma unroll
    for (int e = 0; e < kGroup; ++e) {
      if (e >= width) continue;
      float& s = S[(first + e) * kLd + y];
      s = (total == nullptr ? s : s * total[first + e]) + sign * sum[e];
    }
  }
}

// A square of the workspace to shared memory.
__device__ inline void load_square(const float* from, float* to) {
  for (int e = threadIdx.x; e < kRows * kRows; e += kThreads) to[e / kRows * kSquareLd + e % kRows] = from[e];
}

// Channels [first, first + kSlice) of a chunk's rows; zero from row n and channel D on.
template <class T>
__device__ inline void load_slice(const T* rows, std::int64_t ld, int n, int D, int first, float* to) {
  for (int e = threadIdx.x; e < kRows * kSlice; e += kThreads) {
    const int i = e / kSlice, x = e % kSlice;
    to[i * kLd + x] = i < n && first + x < D ? to_float(rows[i * ld + first + x]) : 0.0f;
  }
}

// The level at which the rows i > j are on two sides of a boundary.
__device__ inline int level_of(int i, int j) {
  return 31 - __clz(i ^ j);
}

// Decays of a slice at every level (README.md, "The decays inside a chunk"): factors[level][i] is e^(sum of g from the
// boundary to i, inclusive) where bit `level` of i is set, and e^(sum after i to the boundary) where it is not.
__device__ inline void level_factors(const float* g, float* factors) {
  for (int e = threadIdx.x; e < kLevels * kRows * kSlice; e += kThreads) {
    const int level = e / (kRows * kSlice), i = e / kSlice % kRows, x = e % kSlice, block = 1 << level;
    const bool second = (i & block) != 0;
    const int begin = second ? i & -block : i + 1, end = second ? i + 1 : (i & -block) + block;
    float sum = 0.0f;
    for (int t = begin; t < end; ++t) sum += g[t * kLd + x];
    factors[level * kTile + i * kLd + x] = expf(sum);
  }
}

// What backward keeps in its workspace.
struct Intermediates {
  Pairs pairs;
  float* entries;          // [chunk_count, H, d_k, d_v] states at the entries of chunks
  float* dexits;           // [chunk_count, H, d_k, d_v] gradients of the states at their exits
  float* W;                // [T, H, d_v] prediction errors
  float* Y;                // [T, H, d_v] gradients of the u_t
  float *sum_dq, *sum_dk;  // [T, H_K, d_k] sums over the value heads of a key head so far

  Intermediates(const DeltaRuleBackward& a, void* workspace) {
    Carver<float> carver(static_cast<float*>(workspace));
    const std::int64_t chunks = a.chunk_count * a.H, sums = a.H == a.H_K ? 0 : a.T * a.H_K * a.d_k;
    pairs.B = carver.take(chunks * kRows * kRows);
    pairs.P = carver.take(chunks * kRows * kRows);
    entries = carver.take(chunks * a.d_k * a.d_v);
    dexits = carver.take(chunks * a.d_k * a.d_v);
    W = carver.take(a.T * a.H * a.d_v);
    Y = carver.take(a.T * a.H * a.d_v);
    sum_dq = carver.take(sums);
    sum_dk = carver.take(sums);
    bytes = static_cast<std::size_t>(carver.used()) * sizeof(float);
  }
  std::size_t bytes;
};

// Launches with that much dynamic shared memory.
template <class... Parameters, class... Arguments>
void launch_kernel(void (*kernel)(Parameters...), dim3 grid, std::size_t shared, const Launch& launch,
                   const Arguments&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  WEFT_CUDA_CALL(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
  kernel<<<grid, kThreads, shared, cuda_stream(launch.stream)>>>(arguments...);
  WEFT_CHECK_LAUNCH();
}

// Launches of delta_general_forward.cu, which backward repeats. Shared memory of the walks over the states, in floats.
void make_pairs(const DeltaRuleProblem& p, const Pairs& pairs, const Launch& launch);
// Entry states [chunk_count, H, d_k, d_v] and prediction errors [T, H, d_v].
void make_entries(const DeltaRuleProblem& p, const Pairs& pairs, float* entries, float* errors, const Launch& launch);
// The gradient of the states: the values', the initial states', dexits and Y.
void retreat(const DeltaRuleBackward& a, const Intermediates& kept, const Launch& launch);
inline std::size_t walk_floats(const DeltaRuleProblem& p) {
  return static_cast<std::size_t>(p.d_k * kLd + kRows * (p.d_k + 1) + p.d_k + 2 * kTile + 2 * kSquare + kRows);
}
inline dim3 walk_grid(const DeltaRuleProblem& p) {
  return {static_cast<unsigned>(p.N), static_cast<unsigned>(p.H),
          static_cast<unsigned>((p.d_v + kColumns - 1) / kColumns)};
}

}  // namespace weft::delta_general
