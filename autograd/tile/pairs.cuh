// Two neighbouring numbers in fp32, as the accumulators of mma.cuh hold them: arithmetic, bf16 in memory, and which
// element of a product a register is.
#pragma once

#include "autograd/tile/mma.cuh"

namespace weft::tile {

__device__ inline float2 operator*(float2 a, float2 b) {
  return {a.x * b.x, a.y * b.y};
}
__device__ inline float2 operator*(float a, float2 b) {
  return {a * b.x, a * b.y};
}
__device__ inline float2 operator+(float2 a, float2 b) {
  return {a.x + b.x, a.y + b.y};
}
__device__ inline float2 operator-(float2 a, float2 b) {
  return {a.x - b.x, a.y - b.y};
}
__device__ inline float2 exp2_pair(float2 x) {
  return {exp2_fast(x.x), exp2_fast(x.y)};
}

__device__ inline float2 load_pair(const bf16* from) {
  return unpack(*reinterpret_cast<const std::uint32_t*>(from));
}
__device__ inline float2 load_pair(const float* from) {
  return *reinterpret_cast<const float2*>(from);
}
__device__ inline void store_pair(bf16* to, float2 value) {
  *reinterpret_cast<std::uint32_t*>(to) = pack(value.x, value.y);
}

// Row and column of register e of an accumulator [16 x 8]; e and e + 1 are neighbours for even e.
__device__ inline int fragment_row(int e) {
  return static_cast<int>(threadIdx.x) % 32 / 4 + e / 2 * 8;
}
__device__ inline int fragment_column() {
  return static_cast<int>(threadIdx.x) % 4 * 2;
}

// f(accumulator, register, row, column) for the pairs of two accumulators side by side, the first from `column` on.
template <class F>
__device__ inline void for_pair(int column, F&& f) {
#pragma unroll
  for (int t = 0; t < 2; ++t) {
#pragma unroll
    for (int e = 0; e < 4; e += 2) f(t, e, fragment_row(e), column + 8 * t + fragment_column());
  }
}
__device__ inline float2 at(const FragmentC& c, int e) {
  return {c.x[e], c.x[e + 1]};
}
__device__ inline void put(FragmentC& c, int e, float2 value) {
  c.x[e] = value.x;
  c.x[e + 1] = value.y;
}
__device__ inline void add(FragmentC& c, int e, float2 value) {
  c.x[e] += value.x;
  c.x[e + 1] += value.y;
}

}  // namespace weft::tile
