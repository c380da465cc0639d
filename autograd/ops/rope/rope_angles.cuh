// The angles of a token in a kernel.
#pragma once

#include "autograd/cuda/pack.cuh"
#include "autograd/ops/rope/rope.h"

namespace weft {

// Cos and sin, magnitude included, of token t in channels [channel, channel + kN) of `half` = D_r/2, by angle addition
// from the two levels, both of which stay in cache.
template <int kN>
__device__ void rope_angles(const RopeAngles& a, std::int64_t half, std::int64_t t, std::int64_t channel,
                            float (&cos)[kN], float (&sin)[kN]) {
  const std::int64_t position = a.positions[t];
  float fine[2 * kN], coarse[2 * kN];
  load_pack(a.fine + 2 * (position % kRopeStride * half + channel), fine);
  load_pack(a.coarse + 2 * (position / kRopeStride * half + channel), coarse);
#pragma unroll
  for (int i = 0; i < kN; ++i) {
    cos[i] = coarse[2 * i] * fine[2 * i] - coarse[2 * i + 1] * fine[2 * i + 1];
    sin[i] = coarse[2 * i + 1] * fine[2 * i] + coarse[2 * i] * fine[2 * i + 1];
  }
}

}  // namespace weft
