// Kernels of cuda_update.cu: one block for each chunk of a parameter.
#pragma once

#include <cstdint>

#include "autograd/cuda/pack.cuh"
#include "train/optimizers/adamw.h"
#include "train/optimizers/muon.h"

namespace weft {

inline constexpr int kUpdateThreads = 512;
inline constexpr int kDecideThreads = 1024;
inline constexpr std::int64_t kChunk = 65536;  // elements

// --- tables ----------------------------------------------------------------------------------------------------------

struct NormChunk {
  const float* grad;
  std::int32_t n;
  std::int32_t unused;
};

struct AdamWChunk {
  float* p;
  float* grad;
  float* m;
  float* v;
  bfloat16* value;  // what the model computes with, or null: p itself
  std::int32_t n;
  std::int32_t plan;
};

struct MuonMatrix {
  float* p;
  float* grad;
  float* momentum;
  bfloat16* value;  // or null
  std::int32_t plan;
  std::int32_t unused;
};

// --- numbers of a step -----------------------------------------------------------------------------------------------

struct StepLimits {
  double clip, most_loss, most_norm, unused;
};

// Of one plan; the gradient scale in them is not read.
struct UpdateScalars {
  AdamWScalars adamw;
  MuonScalars muon;
};

struct StepVerdict {
  double norm, clip_factor;
  float gradient_scale;
  std::int32_t apply;
};

// --- reductions ------------------------------------------------------------------------------------------------------

__device__ inline double sum_lanes(double x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) x += __shfl_xor_sync(0xffffffffu, x, mask);
  return x;
}

// Over a block of kUpdateThreads, by a fixed tree; the result is thread 0's.
__device__ inline double sum_block(double x) {
  __shared__ double of_warp[kUpdateThreads / 32];
  x = sum_lanes(x);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < kUpdateThreads / 32; ++w) x += of_warp[w];
  }
  return x;
}

// Calls f.template operator()<width>(i) for packs of kN elements of a chunk, then for the rest one by one.
template <int kN, class F>
__device__ void for_chunk(std::int32_t n, const F& f) {
  const std::int32_t whole = n / kN * kN;
  for (std::int32_t i = threadIdx.x * kN; i < whole; i += kUpdateThreads * kN) f.template operator()<kN>(i);
  if constexpr (kN > 1) {
    if (whole + static_cast<std::int32_t>(threadIdx.x) < n) f.template operator()<1>(whole + threadIdx.x);
  }
}

// --- norm and decision -----------------------------------------------------------------------------------------------

// Squares in fp32 as on the CPU, their sum in fp64.
static __global__ void __launch_bounds__(kUpdateThreads)
    sum_squares(const NormChunk* __restrict__ chunks, double* __restrict__ partial) {
  const NormChunk c = chunks[blockIdx.x];
  double sum = 0.0;
  for_chunk<4>(c.n, [&]<int kN>(std::int32_t i) {
    float g[kN];
    load_pack(c.grad + i, g);
#pragma unroll
    for (int k = 0; k < kN; ++k) sum += static_cast<double>(__fmul_rn(g[k], g[k]));
  });
  sum = sum_block(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// Sums of parameters by one warp each, their total by one warp, and what follows from it.
static __global__ void __launch_bounds__(kDecideThreads)
    decide_step(const double* __restrict__ partial, const std::int32_t* __restrict__ first_chunk,
                std::int32_t parameters, const double* __restrict__ loss, const StepLimits* __restrict__ limits,
                double* squares, StepVerdict* __restrict__ verdict) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (std::int32_t p = warp; p < parameters; p += kDecideThreads / 32) {
    double sum = 0.0;
    for (std::int32_t c = first_chunk[p] + lane; c < first_chunk[p + 1]; c += 32) sum += partial[c];
    sum = sum_lanes(sum);
    if (lane == 0) squares[p] = sum;
  }
  __syncthreads();
  if (warp != 0) return;
  double total = 0.0;
  for (std::int32_t p = lane; p < parameters; p += 32) total += squares[p];
  total = sum_lanes(total);
  if (lane != 0) return;
  const double norm = sqrt(total);
  const double mean_loss = loss == nullptr ? 0.0 : *loss;
  const double factor = limits->clip == 0.0 ? 1.0 : fmin(1.0, limits->clip / (norm + 1e-6));
  const bool apply =
      isfinite(norm) && isfinite(mean_loss) && mean_loss <= limits->most_loss && norm <= limits->most_norm;
  *verdict = {norm, factor, static_cast<float>(factor), apply ? 1 : 0};
}

// --- AdamW -----------------------------------------------------------------------------------------------------------

// One element, in the roundings that adamw.h declares.
__device__ inline void adamw_element(const AdamWScalars& s, float scale, float grad, float& p, float& m, float& v) {
  const float g = __fmul_rn(scale, grad);
  const float square = __fmul_rn(g, g);
  m = __fmaf_rn(s.beta1, __fsub_rn(m, g), g);
  v = __fmaf_rn(s.beta2, __fsub_rn(v, square), square);
  const float direction =
      __fdiv_rn(__fmul_rn(m, s.correction1), __fadd_rn(__fsqrt_rn(__fmul_rn(v, s.correction2)), s.eps));
  p = __fmaf_rn(-s.learning_rate, __fmaf_rn(s.weight_decay, p, direction), p);
}

static __global__ void __launch_bounds__(kUpdateThreads)
    adamw_chunk(const AdamWChunk* __restrict__ chunks, const UpdateScalars* __restrict__ scalars,
                const StepVerdict* __restrict__ verdict) {
  const AdamWChunk c = chunks[blockIdx.x];
  const bool apply = verdict->apply != 0;
  const float scale = verdict->gradient_scale;
  const AdamWScalars s = scalars[c.plan].adamw;
  for_chunk<4>(c.n, [&]<int kN>(std::int32_t i) {
    constexpr float kZero[kN] = {};
    if (apply) {
      float grad[kN], p[kN], m[kN], v[kN];
      load_pack(c.grad + i, grad);
      load_pack(c.p + i, p);
      load_pack(c.m + i, m);
      load_pack(c.v + i, v);
#pragma unroll
      for (int k = 0; k < kN; ++k) adamw_element(s, scale, grad[k], p[k], m[k], v[k]);
      store_pack(c.p + i, p);
      store_pack(c.m + i, m);
      store_pack(c.v + i, v);
      if (c.value != nullptr) store_pack(c.value + i, p);
    }
    store_pack(c.grad + i, kZero);
  });
}

// --- Muon ------------------------------------------------------------------------------------------------------------

// One pass over a batch of matrices of equal size; block b is chunk b % chunks of matrix b / chunks.
struct MuonPass {
  const MuonMatrix* matrices;
  std::int64_t elements;  // of a matrix
  std::int32_t chunks;    // of a matrix
  const UpdateScalars* scalars;
  const StepVerdict* verdict;
  double* squares;  // by block

  __device__ std::int64_t begin() const { return blockIdx.x % chunks * kChunk; }
  __device__ std::int32_t count() const { return static_cast<std::int32_t>(min(kChunk, elements - begin())); }
  __device__ const MuonMatrix& matrix() const { return matrices[blockIdx.x / chunks]; }
};

// The new momentum, and the squares of the Nesterov direction.
template <int kPack>
__global__ void __launch_bounds__(kUpdateThreads) muon_momentum(const MuonPass pass) {
  if (pass.verdict->apply == 0) return;
  const MuonMatrix& matrix = pass.matrix();
  const float scale = pass.verdict->gradient_scale, mu = pass.scalars[matrix.plan].muon.momentum;
  const float* const grad = matrix.grad + pass.begin();
  float* const momentum = matrix.momentum + pass.begin();
  double sum = 0.0;
  for_chunk<kPack>(pass.count(), [&]<int kN>(std::int32_t i) {
    float g[kN], m[kN];
    load_pack(grad + i, g);
    load_pack(momentum + i, m);
#pragma unroll
    for (int k = 0; k < kN; ++k) {
      g[k] = __fmul_rn(scale, g[k]);
      m[k] = __fmaf_rn(mu, __fsub_rn(m[k], g[k]), g[k]);
      const double direction = __fmaf_rn(mu, __fsub_rn(m[k], g[k]), g[k]);
      sum += direction * direction;
    }
    store_pack(momentum + i, m);
  });
  sum = sum_block(sum);
  if (threadIdx.x == 0) pass.squares[blockIdx.x] = sum;
}

// x = direction / (its norm + 1e-7), rounded once; gradients become zero.
template <int kPack>
__global__ void __launch_bounds__(kUpdateThreads) muon_direction(const MuonPass pass, bfloat16* x) {
  __shared__ float inverse_norm;
  const MuonMatrix& matrix = pass.matrix();
  float* const grad = matrix.grad + pass.begin();
  const bool apply = pass.verdict->apply != 0;
  if (apply && threadIdx.x < 32) {
    const double* const squares = pass.squares + blockIdx.x / pass.chunks * pass.chunks;
    double sum = 0.0;
    for (int c = threadIdx.x; c < pass.chunks; c += 32) sum += squares[c];
    sum = sum_lanes(sum);
    if (threadIdx.x == 0) inverse_norm = static_cast<float>(1.0 / (sqrt(sum) + 1e-7));
  }
  __syncthreads();
  const float scale = pass.verdict->gradient_scale, mu = pass.scalars[matrix.plan].muon.momentum;
  const float* const momentum = matrix.momentum + pass.begin();
  bfloat16* const to = x + blockIdx.x / pass.chunks * pass.elements + pass.begin();
  for_chunk<kPack>(pass.count(), [&]<int kN>(std::int32_t i) {
    constexpr float kZero[kN] = {};
    if (apply) {
      float g[kN], m[kN];
      load_pack(grad + i, g);
      load_pack(momentum + i, m);
#pragma unroll
      for (int k = 0; k < kN; ++k) {
        g[k] = __fmul_rn(scale, g[k]);
        m[k] = __fmaf_rn(mu, __fsub_rn(m[k], g[k]), g[k]) * inverse_norm;
      }
      store_pack(to + i, m);
    }
    store_pack(grad + i, kZero);
  });
}

// p = fma(-step, x, keep p).
template <int kPack>
__global__ void __launch_bounds__(kUpdateThreads) muon_apply(const MuonPass pass, const bfloat16* x) {
  if (pass.verdict->apply == 0) return;
  const MuonMatrix& matrix = pass.matrix();
  const MuonScalars s = pass.scalars[matrix.plan].muon;
  float* const p = matrix.p + pass.begin();
  const bfloat16* const from = x + blockIdx.x / pass.chunks * pass.elements + pass.begin();
  for_chunk<kPack>(pass.count(), [&]<int kN>(std::int32_t i) {
    float direction[kN], w[kN];
    load_pack(from + i, direction);
    load_pack(p + i, w);
#pragma unroll
    for (int k = 0; k < kN; ++k) w[k] = __fmaf_rn(-s.step, direction[k], __fmul_rn(s.keep, w[k]));
    store_pack(p + i, w);
    if (matrix.value != nullptr) store_pack(matrix.value + pass.begin() + i, w);
  });
}

}  // namespace weft
