// What the CUDA kernels of the family share: elements of either type, decays of states. For .cu files.
#pragma once

#include <cuda_bf16.h>

#include "modules/families/gated_linear/gated_linear.h"

namespace weft {

// Rows of bf16 or f32 elements in device memory, x of head h of token t; read and written as f32.
struct DeviceRows {
  void* data;
  bool half;  // bf16
  std::int64_t heads, width;

  __device__ std::int64_t offset(std::int64_t t, std::int64_t h, std::int64_t x) const {
    return (t * heads + h) * width + x;
  }
  __device__ float at(std::int64_t t, std::int64_t h, std::int64_t x) const {
    const std::int64_t e = offset(t, h, x);
    return half ? __bfloat162float(static_cast<const __nv_bfloat16*>(data)[e]) : static_cast<const float*>(data)[e];
  }
  __device__ void put(std::int64_t t, std::int64_t h, std::int64_t x, float value, Write write) const {
    const std::int64_t e = offset(t, h, x);
    if (write == Write::accumulate) value += at(t, h, x);
    if (half) {
      static_cast<__nv_bfloat16*>(data)[e] = __float2bfloat16_rn(value);
    } else {
      static_cast<float*>(data)[e] = value;
    }
  }
};

inline DeviceRows device_rows(const void* data, DType dtype, std::int64_t heads, std::int64_t width) {
  return {const_cast<void*>(data), dtype == DType::bf16, heads, width};
}

// e^G s + u. A factor close to 1 that comes again and again would repeat its rounding; what it takes away does not.
struct DeviceStateDecay {
  __device__ explicit DeviceStateDecay(float G) : kept(expf(G)), lost(kept > 0.5f ? -expm1f(G) : 1.0f) {}
  __device__ float advance(float s, float u) const { return kept > 0.5f ? s + fmaf(-lost, s, u) : fmaf(kept, s, u); }

  float kept, lost;
};

}  // namespace weft
