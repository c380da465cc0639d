// Reductions whose tree does not depend on anything but the number of lanes: the same bits every run.
#pragma once

#include "autograd/tile/numeric.cuh"

namespace weft::tile {

struct Sum {
  static constexpr float kNeutral = 0.0f;
  __device__ static float apply(float a, float b) { return a + b; }
};
struct Max {
  static constexpr float kNeutral = -INFINITY;
  __device__ static float apply(float a, float b) { return fmaxf(a, b); }
};

// Over aligned groups of `Lanes` neighbouring lanes; every lane gets the result. All 32 lanes take part.
template <class Op, int Lanes = kWarp>
__device__ inline float reduce_lanes(float x) {
  static_assert(Lanes == 2 || Lanes == 4 || Lanes == 8 || Lanes == 16 || Lanes == 32, "groups are powers of 2");
#pragma unroll
  for (int mask = Lanes / 2; mask > 0; mask /= 2) x = Op::apply(x, __shfl_xor_sync(0xffffffffu, x, mask));
  return x;
}
// The four lanes that share a row of an mma accumulator.
template <class Op>
__device__ inline float reduce_quad(float x) {
  return reduce_lanes<Op, 4>(x);
}

// Over a block of `Threads` threads; every thread gets the result. `scratch` holds Threads / 32 floats, and may be used
// again at once.
template <class Op, int Threads>
__device__ inline float reduce_block(float x, float* scratch) {
  static_assert(Threads % kWarp == 0 && Threads <= 1024, "whole warps");
  constexpr int kWarps = Threads / kWarp;
  x = reduce_lanes<Op>(x);
  if constexpr (kWarps == 1) return x;
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = x;
  __syncthreads();
  float total = scratch[0];
#pragma unroll
  for (int i = 1; i < kWarps; ++i) total = Op::apply(total, scratch[i]);
  __syncthreads();
  return total;
}

}  // namespace weft::tile
