// What the portable kernels share: tiles of 32 rows in shared memory, their products and sums in fp32.
//
// A block of four warps holds 32 rows of one side and walks tiles of 32 of the other side; a warp owns 8 rows, a lane
// one row of the other side while scores are made and every 32nd channel while sums are.
#pragma once

#include "autograd/cuda/map_cuda.cuh"
#include "autograd/tile/reduce.cuh"
#include "modules/families/attention/visibility.cuh"

namespace weft::attention_cuda {

inline constexpr int kTileRows = 32;
inline constexpr int kTileWarps = 4;
inline constexpr int kTileThreads = kTileWarps * 32;
inline constexpr int kOwn = kTileRows / kTileWarps;  // rows of a warp

// What the forward and the backward kernels need of the scores.
struct ScoreArgs {
  Sight sight;
  float scale;  // of a product
  float cap;    // 0: none
};

__device__ inline float score(float product, const ScoreArgs& s) {
  const float z = product * s.scale;
  return s.cap > 0.0f ? s.cap * tanhf(z / s.cap) : z;
}

// [32][width] fp32 with rows 4 floats more than a multiple of 32 apart: 16-byte reads of one column do not conflict.
__host__ __device__ inline int leading(int width) {
  return (width + 31) / 32 * 32 + 4;
}

// Row r of the tile from address_of(r), for r < count; rows from `count` on, and channels up to the leading dimension,
// are zero.
template <class AddressOf>
__device__ void stage_rows(float* to, int width, int count, AddressOf&& address_of) {
  const int ld = leading(width);
  for (int i = threadIdx.x; i < kTileRows * ld; i += kTileThreads) {
    const int row = i / ld, c = i % ld;
    to[i] = row < count && c < width ? to_float(address_of(row)[c]) : 0.0f;
  }
}
template <class T>
__device__ void stage(float* to, const T* from, std::int64_t stride, int width, int count) {
  stage_rows(to, width, count, [&](int row) { return from + row * stride; });
}

// x[r] = <own row r of a, row `lane` of b>
__device__ inline void products(float (&x)[kOwn], const float* a, const float* b, int width) {
  const int ld = leading(width), lane = threadIdx.x % 32, own = threadIdx.x / 32 * kOwn;
#pragma unroll
  for (int r = 0; r < kOwn; ++r) x[r] = 0.0f;
  for (int c = 0; c < width; c += 4) {
    const float4 right = *reinterpret_cast<const float4*>(b + lane * ld + c);
#pragma unroll
    for (int r = 0; r < kOwn; ++r) {
      const float4 left = *reinterpret_cast<const float4*>(a + (own + r) * ld + c);
      x[r] += left.x * right.x + left.y * right.y + left.z * right.z + left.w * right.w;
    }
  }
}

// sum[r][part] += sum over the other side's rows j of x[r] (lane j's) * b[j][channel]
template <int Parts>
__device__ inline void accumulate(float (&sum)[kOwn][Parts], const float (&x)[kOwn], const float* b, int width) {
  const int ld = leading(width), lane = threadIdx.x % 32;
  for (int j = 0; j < kTileRows; ++j) {
    float weight[kOwn];
#pragma unroll
    for (int r = 0; r < kOwn; ++r) weight[r] = __shfl_sync(0xffffffffu, x[r], j);
#pragma unroll
    for (int part = 0; part < Parts; ++part) {
      if (part * 32 >= width) break;
      const float value = b[j * ld + part * 32 + lane];
#pragma unroll
      for (int r = 0; r < kOwn; ++r) sum[r][part] += weight[r] * value;
    }
  }
}

// Online softmax of a warp's own rows.
template <int Parts>
struct PortableSoftmax {
  float top[kOwn], mass[kOwn], sum[kOwn][Parts];

  __device__ void start(float sink_logit) {
#pragma unroll
    for (int r = 0; r < kOwn; ++r) {
      top[r] = sink_logit;
      mass[r] = sink_logit == -INFINITY ? 0.0f : 1.0f;
#pragma unroll
      for (int part = 0; part < Parts; ++part) sum[r][part] = 0.0f;
    }
  }
  // p[r] holds the product of own row r and this lane's key; seen(r) says whether that row sees it.
  template <class Seen>
  __device__ void add(float (&p)[kOwn], const float* values, int D_V, const ScoreArgs& s, Seen&& seen) {
#pragma unroll
    for (int r = 0; r < kOwn; ++r) {
      const float a = seen(r) ? score(p[r], s) : -INFINITY;
      const float above = fmaxf(top[r], tile::reduce_lanes<tile::Max>(a));
      const float origin = above == -INFINITY ? 0.0f : above;
      const float rescale = expf(top[r] - origin);
      p[r] = expf(a - origin);
      mass[r] = mass[r] * rescale + tile::reduce_lanes<tile::Sum>(p[r]);
      top[r] = above;
#pragma unroll
      for (int part = 0; part < Parts; ++part) sum[r][part] *= rescale;
    }
    accumulate(sum, p, values, D_V);
  }
  __device__ float inverse(int r) const {
    return mass[r] == 0.0f ? 0.0f : 1.0f / mass[r];
  }
  __device__ float lse(int r) const {
    return mass[r] == 0.0f ? -INFINITY : top[r] + logf(mass[r]);
  }
};

}  // namespace weft::attention_cuda
