// CUDA kernels of denominators.h: a warp for each row, fp32 arithmetic on bf16 or f32 elements.
#include <cuda_bf16.h>

#include "autograd/cuda/cuda_check.cuh"
#include "modules/families/gated_linear/denominators.h"

namespace weft {
namespace {

constexpr int kWarps = 4;

__device__ float load(const float* p, std::int64_t i) {
  return p[i];
}
__device__ float load(const __nv_bfloat16* p, std::int64_t i) {
  return __bfloat162float(p[i]);
}
__device__ void put(float* p, std::int64_t i, float value, Write write) {
  p[i] = write == Write::accumulate ? p[i] + value : value;
}
__device__ void put(__nv_bfloat16* p, std::int64_t i, float value, Write write) {
  p[i] = __float2bfloat16_rn(write == Write::accumulate ? load(p, i) + value : value);
}

__device__ float guarded(float denominator) {
  return fmaxf(denominator, static_cast<float>(kLeastDenominator));
}
__device__ bool is_free(float denominator) {
  return denominator > static_cast<float>(kLeastDenominator);
}
// c of the magnitude-aware combination.
__device__ float difference_weight(float share, float count) {
  return share == 0.0f ? 1.0f : share / count;
}

// f(row, lane) for every row; a warp takes one after the other.
template <class F>
__global__ void __launch_bounds__(32 * kWarps) rows_kernel(std::int64_t R, F f) {
  const int lane = threadIdx.x % 32;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kWarps;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; i < R; i += step) {
    f(i, lane);
  }
}

template <class F>
void for_each_row(std::int64_t R, const Launch& launch, F f) {
  if (R == 0) return;
  const std::int64_t blocks = std::min<std::int64_t>((R + kWarps - 1) / kWarps, 1 << 16);
  rows_kernel<<<static_cast<unsigned>(blocks), 32 * kWarps, 0, cuda_stream(launch.stream)>>>(R, f);
  WEFT_CHECK_LAUNCH();
}

template <class T>
__device__ float row_dot(const T* a, const T* b, std::int64_t D, int lane) {
  float sum = 0.0f;
  for (std::int64_t c = lane; c < D; c += 32) sum = fmaf(load(a, c), load(b, c), sum);
  for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
  return sum;
}

// f.template operator()<T>() for the element type on the device.
template <class F>
void dispatch_elements(DType dtype, F&& f) {
  if (dtype == DType::bf16) return f.template operator()<__nv_bfloat16>();
  WEFT_CHECK(dtype == DType::f32, "denominators: expected f32 or bf16 on CUDA, got {}", name_of(dtype));
  f.template operator()<float>();
}

// The functors are named so that kernels keep short names.
template <class T>
struct Append {
  AppendOnesForward a;
  __device__ void operator()(std::int64_t i, int lane) const {
    const T* v = static_cast<const T*>(a.v) + i * a.D;
    T* y = static_cast<T*>(a.y) + i * (a.D + 1);
    for (std::int64_t c = lane; c <= a.D; c += 32) put(y, c, c < a.D ? load(v, c) : 1.0f, Write::overwrite);
  }
};

template <class T>
struct AppendGradient {
  AppendOnesBackward a;
  __device__ void operator()(std::int64_t i, int lane) const {
    const T* dy = static_cast<const T*>(a.dy) + i * (a.D + 1);
    T* dv = static_cast<T*>(a.dv) + i * a.D;
    for (std::int64_t c = lane; c < a.D; c += 32) put(dv, c, load(dy, c), a.write_dv);
  }
};

template <class T>
struct Divide {
  DivideForward a;
  __device__ void operator()(std::int64_t i, int lane) const {
    const T* sums = static_cast<const T*>(a.sums) + i * (a.D + 1);
    T* o = static_cast<T*>(a.o) + i * a.D;
    const float inverse = 1.0f / guarded(load(sums, a.D));
    for (std::int64_t c = lane; c < a.D; c += 32) put(o, c, load(sums, c) * inverse, Write::overwrite);
  }
};

template <class T>
struct DivideGradient {
  DivideBackward a;
  __device__ void operator()(std::int64_t i, int lane) const {
    const T* sums = static_cast<const T*>(a.sums) + i * (a.D + 1);
    const T* d_o = static_cast<const T*>(a.d_o) + i * a.D;
    T* dsums = static_cast<T*>(a.dsums) + i * (a.D + 1);
    const float n = load(sums, a.D);
    const float inverse = 1.0f / guarded(n);
    const float dn = is_free(n) ? -row_dot(d_o, sums, a.D, lane) * inverse * inverse : 0.0f;
    for (std::int64_t c = lane; c <= a.D; c += 32) {
      put(dsums, c, c < a.D ? load(d_o, c) * inverse : dn, a.write_dsums);
    }
  }
};

template <class T>
struct Magnitude {
  MagnitudeAwareForward a;
  __device__ void operator()(std::int64_t i, int lane) const {
    const T* sums = static_cast<const T*>(a.sums) + i * (a.D + 1);
    const T* totals = static_cast<const T*>(a.totals) + i * (a.D + 1);
    T* o = static_cast<T*>(a.o) + i * a.D;
    const float z = guarded(load(sums, a.D)), count = load(totals, a.D);
    const float weight = difference_weight(static_cast<float>(a.share), count);
    const float beta = weight + 1.0f / z, gamma = weight * (z / count);
    for (std::int64_t c = lane; c < a.D; c += 32) {
      put(o, c, beta * load(sums, c) - gamma * load(totals, c), Write::overwrite);
    }
  }
};

template <class T>
struct MagnitudeGradient {
  MagnitudeAwareBackward a;
  __device__ void operator()(std::int64_t i, int lane) const {
    const T* sums = static_cast<const T*>(a.sums) + i * (a.D + 1);
    const T* totals = static_cast<const T*>(a.totals) + i * (a.D + 1);
    const T* d_o = static_cast<const T*>(a.d_o) + i * a.D;
    const float n = load(sums, a.D), z = guarded(n), count = load(totals, a.D);
    const float weight = difference_weight(static_cast<float>(a.share), count);
    if (a.dsums != nullptr) {
      T* dsums = static_cast<T*>(a.dsums) + i * (a.D + 1);
      const float beta = weight + 1.0f / z;
      const float dz = -row_dot(d_o, sums, a.D, lane) / (z * z) - weight * row_dot(d_o, totals, a.D, lane) / count;
      for (std::int64_t c = lane; c <= a.D; c += 32) {
        put(dsums, c, c < a.D ? beta * load(d_o, c) : is_free(n) ? dz : 0.0f, a.write_dsums);
      }
    }
    if (a.dtotals != nullptr) {
      T* dtotals = static_cast<T*>(a.dtotals) + i * (a.D + 1);
      const float gamma = weight * (z / count);
      for (std::int64_t c = lane; c <= a.D; c += 32) {
        put(dtotals, c, c < a.D ? -gamma * load(d_o, c) : 0.0f, a.write_dtotals);
      }
    }
  }
};

}  // namespace

void append_ones_forward_cuda(const AppendOnesForward& args, const Launch& launch) {
  dispatch_elements(args.dtype, [&]<class T>() { for_each_row(args.R, launch, Append<T>{args}); });
}
void append_ones_backward_cuda(const AppendOnesBackward& args, const Launch& launch) {
  dispatch_elements(args.dtype, [&]<class T>() { for_each_row(args.R, launch, AppendGradient<T>{args}); });
}
void divide_forward_cuda(const DivideForward& args, const Launch& launch) {
  dispatch_elements(args.dtype, [&]<class T>() { for_each_row(args.R, launch, Divide<T>{args}); });
}
void divide_backward_cuda(const DivideBackward& args, const Launch& launch) {
  dispatch_elements(args.dtype, [&]<class T>() { for_each_row(args.R, launch, DivideGradient<T>{args}); });
}
void magnitude_aware_forward_cuda(const MagnitudeAwareForward& args, const Launch& launch) {
  dispatch_elements(args.dtype, [&]<class T>() { for_each_row(args.R, launch, Magnitude<T>{args}); });
}
void magnitude_aware_backward_cuda(const MagnitudeAwareBackward& args, const Launch& launch) {
  dispatch_elements(args.dtype, [&]<class T>() { for_each_row(args.R, launch, MagnitudeGradient<T>{args}); });
}

}  // namespace weft
