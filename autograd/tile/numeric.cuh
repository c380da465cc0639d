// Numbers on the device: bf16 pairs, powers of 2, 16-byte vectors with inert defaults.
//
// bf16 is storage; arithmetic is fp32, and a value is rounded once, to nearest with ties to even.
#pragma once

#include <cstdint>
#include <cuda_bf16.h>

namespace weft::tile {

using bf16 = __nv_bfloat16;

inline constexpr float kLog2e = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;
inline constexpr int kWarp = 32;
inline constexpr int kWarpgroup = 128;

// Element <-> fp32, so that one kernel text serves both storage types.
__device__ inline float to_float(float x) {
  return x;
}
__device__ inline float to_float(bf16 x) {
  return __bfloat162float(x);
}
template <class T>
__device__ inline T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline bf16 from_float<bf16>(float x) {
  return __float2bfloat16_rn(x);
}

// Two values as the two halves of a register; the first is the low half (the lower address, the lower column).
__device__ inline std::uint32_t pack(float low, float high) {
  std::uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
__device__ inline float2 unpack(std::uint32_t packed) {
  return {__uint_as_float(packed << 16), __uint_as_float(packed & 0xffff0000u)};
}

// 2^x and log2(x) of the special-function unit: relative error 2^-22; 2^-infinity = 0.
__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline float log2_fast(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline float reciprocal_fast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// tanh from one exponential and one reciprocal: absolute error near 1e-7, where tanh.approx has 5e-4.
__device__ inline float tanh_fast(float x) {
  return 1.0f - 2.0f * reciprocal_fast(1.0f + exp2_fast(2.0f * kLog2e * x));
}

// --- 16-byte vectors
// ---------------------------------------------------------------------------------------------------

// Sixteen bytes of T: 8 bf16 or 4 floats.
template <class T>
struct alignas(16) Vector16 {
  static constexpr int kSize = 16 / static_cast<int>(sizeof(T));
  T x[kSize];

  __device__ float get(int i) const { return to_float(x[i]); }
  __device__ void set(int i, float value) { x[i] = from_float<T>(value); }
  __device__ static Vector16 filled(float value) {
    Vector16 v;
#pragma unroll
    for (int i = 0; i < kSize; ++i) v.set(i, value);
    return v;
  }
};

// The pointer must be 16-byte aligned.
template <class T>
__device__ inline Vector16<T> load16(const T* from) {
  return *reinterpret_cast<const Vector16<T>*>(from);
}
template <class T>
__device__ inline void store16(T* to, const Vector16<T>& value) {
  *reinterpret_cast<Vector16<T>*>(to) = value;
}
// Reads nothing and gives `inert` where `valid` is false: tail rows never see memory that is not theirs.
template <class T>
__device__ inline Vector16<T> load16_if(bool valid, const T* from, float inert = 0.0f) {
  return valid ? load16(from) : Vector16<T>::filled(inert);
}
// The first `count` elements; the rest are `inert`. Whole vectors go as one access if `aligned`.
template <class T>
__device__ inline Vector16<T> load16_partial(const T* from, int count, bool aligned, float inert = 0.0f) {
  if (aligned && count >= Vector16<T>::kSize) return load16(from);
  Vector16<T> v = Vector16<T>::filled(inert);
#pragma unroll
  for (int i = 0; i < Vector16<T>::kSize; ++i) {
    if (i < count) v.x[i] = from[i];
  }
  return v;
}
template <class T>
__device__ inline void store16_partial(T* to, const Vector16<T>& value, int count, bool aligned) {
  if (aligned && count >= Vector16<T>::kSize) return store16(to, value);
#pragma unroll
  for (int i = 0; i < Vector16<T>::kSize; ++i) {
    if (i < count) to[i] = value.x[i];
  }
}

// Whether rows that start at `base` and are `stride` elements apart all start on 16 bytes.
template <class T>
__host__ __device__ inline bool aligned16(const T* base, std::int64_t stride) {
  return (reinterpret_cast<std::uintptr_t>(base) % 16 == 0) && (stride * static_cast<int>(sizeof(T)) % 16 == 0);
}

// Address of shared memory as the PTX instructions want it.
__device__ inline std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

}  // namespace weft::tile
