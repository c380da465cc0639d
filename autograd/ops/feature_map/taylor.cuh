// CUDA kernels of the Taylor features of feature_map.h.
//
// Rows of features have an odd width, so that 16 bytes at a time only fit groups of kN rows, in which W packs of kN
// elements lie. R rows, D width of a row, W of its features.
#pragma once

#include <algorithm>
#include <cmath>

#include "autograd/cuda/map_cuda.cuh"
#include "autograd/cuda/map_rows.cuh"
#include "autograd/ops/feature_map/feature_map.h"
#include "autograd/tile/async_copy.cuh"

namespace weft::taylor {

constexpr std::int64_t kWidest = 256;

struct Scales {
  explicit Scales(std::int64_t D)
      : linear(static_cast<float>(std::pow(static_cast<double>(D), -0.25))),
        square(static_cast<float>(std::sqrt(0.5 / static_cast<double>(D)))),
        pair(static_cast<float>(std::sqrt(1.0 / static_cast<double>(D)))) {}
  float linear, square, pair;
};

// Products of channels i < j, in the order of i, then j: where that of i with i + 1 stands.
__device__ inline int first_pair(int i, int D) {
  return i * (2 * D - i - 1) / 2;
}

// --- forward ---------------------------------------------------------------------------------------------------------

// Feature `at` is scale x_i x_j, where x_D = 1.
class Feature {
 public:
  __device__ Feature(int at, int D) : D_(D), at_(at) {
    place();
    if (at <= 2 * D) return;
    const int k = at - 1 - 2 * D;
    const auto b = static_cast<float>(2 * D - 1);
    i_ = static_cast<int>(0.5f * (b - sqrtf(b * b - 8.0f * static_cast<float>(k))));
    while (i_ > 0 && first_pair(i_, D) > k) --i_;
    while (first_pair(i_ + 1, D) <= k) ++i_;
    j_ = k - first_pair(i_, D) + i_ + 1;
  }
  __device__ int i() const { return i_; }
  __device__ int j() const { return j_; }
  __device__ float scale(const Scales& s) const {
    return at_ == 0 ? 1.0f : at_ <= D_ ? s.linear : at_ <= 2 * D_ ? s.square : s.pair;
  }
  // The next feature of the row; false at its end, where the first one follows.
  __device__ bool step(int W) {
    const bool more = ++at_ < W;
    if (!more) at_ = 0;
    if (at_ <= 2 * D_ + 1) {
      place();
    } else if (++j_ == D_) {
      j_ = ++i_ + 1;
    }
    return more;
  }

 private:
  // i and j of all features up to the first product of two channels.
  __device__ void place() {
    i_ = at_ == 0 ? D_ : at_ <= D_ ? at_ - 1 : at_ - 1 - D_;
    j_ = at_ <= D_ ? D_ : i_;
    if (at_ == 2 * D_ + 1) i_ = 0, j_ = 1;
  }
  int D_, at_, i_, j_;
};

// What a pack of features is made of: products of elements of shared memory.
template <int kN>
struct Products {
  int left[kN], right[kN];
  float scale[kN];

  // The pack-th of a group of rows.
  __device__ void find(int pack, int W, int D, const Scales& scales) {
    int row = pack * kN / W;
    Feature feature(pack * kN - row * W, D);
#pragma unroll
    for (int e = 0; e < kN; ++e) {
      left[e] = row * (D + 1) + feature.i();
      right[e] = row * (D + 1) + feature.j();
      scale[e] = feature.scale(scales);
      if (!feature.step(W)) ++row;
    }
  }
  __device__ void compute(const float* group, float (&values)[kN]) const {
#pragma unroll
    for (int e = 0; e < kN; ++e) values[e] = scale[e] * group[left[e]] * group[right[e]];
  }
};

constexpr int kForwardThreads = 256;

// A block takes `groups` groups of kN rows into shared memory, each row with its 1 behind it. A thread makes the same
// pack of every group, so that it finds out only once what that is made of. kD is D, or 0 for any.
template <class T, int kN, int kD>
__global__ void __launch_bounds__(kForwardThreads)
    forward_kernel(FeatureMapForward a, Scales scales, int W, int groups, Divider width) {
  extern __shared__ float rows[];
  const int D = kD == 0 ? static_cast<int>(a.D) : kD, group_stride = kN * (D + 1);
  const std::int64_t first_row = static_cast<std::int64_t>(blockIdx.x) * groups * kN;
  const int count = static_cast<int>(min(a.R - first_row, static_cast<std::int64_t>(groups) * kN));
  const T* x = static_cast<const T*>(a.x) + first_row * D;
#pragma unroll 4
  for (int at = threadIdx.x; at < count * D; at += blockDim.x) {
    const int row = kD == 0 ? static_cast<int>(width.quotient(static_cast<std::uint32_t>(at))) : at / D;
    rows[at + row] = to_float(x[at]);
  }
  for (int row = threadIdx.x; row < count; row += blockDim.x) rows[row * (D + 1) + D] = 1.0f;
  __syncthreads();

  for (int pack = threadIdx.x; pack < W; pack += blockDim.x) {
    Products<kN> products;
    products.find(pack, W, D, scales);
    T* y = static_cast<T*>(a.y) + first_row * W + pack * kN;
    for (int g = 0; g * kN < count; ++g, y += kN * W) {
      float values[kN];
      products.compute(rows + g * group_stride, values);
      const int rest = (count - g * kN) * W - pack * kN;  // elements from here to the end of the block's rows
      if (rest >= kN) {
        store_pack(y, values);
        continue;
      }
      // A last group that is not whole; what lies beyond its rows is not stored.
#pragma unroll
      for (int e = 0; e < kN; ++e) {
        if (e < rest) y[e] = from_float<T>(values[e]);
      }
    }
  }
}

template <class T, int kN, int kD>
void launch_forward(const FeatureMapForward& a, const Launch& launch) {
  constexpr std::int64_t kRows = 128, kBytes = 40 << 10;
  const std::int64_t W = feature_width(FeatureMap::taylor, a.D);
  const std::int64_t group_bytes = kN * (a.D + 1) * static_cast<std::int64_t>(sizeof(float));
  const std::int64_t groups = std::clamp<std::int64_t>(kBytes / group_bytes, 1, kRows / kN);
  const auto threads = static_cast<unsigned>(std::min<std::int64_t>(kForwardThreads, (W + 31) / 32 * 32));
  const auto blocks = static_cast<unsigned>((a.R + groups * kN - 1) / (groups * kN));
  forward_kernel<T, kN, kD>
      <<<blocks, threads, static_cast<std::size_t>(groups * group_bytes), cuda_stream(launch.stream)>>>(
          a, Scales(a.D), static_cast<int>(W), static_cast<int>(groups), Divider(static_cast<std::uint32_t>(a.D)));
}

// --- backward --------------------------------------------------------------------------------------------------------

// A thread for each row of kD channels, which it keeps in registers; gradients of features come to it through shared
// memory, where an odd stride keeps neighbours apart.
constexpr int kBackwardRows = 64;

template <class T, int kN, int kD>
__global__ void __launch_bounds__(kBackwardRows) backward_kernel(FeatureMapBackward a, Scales scales) {
  constexpr int W = 1 + kD + kD * (kD + 1) / 2, kRows = kBackwardRows;
  __shared__ alignas(16) T gradients[kRows * W];
  const std::int64_t first_row = static_cast<std::int64_t>(blockIdx.x) * kRows;
  const int count = static_cast<int>(a.R - first_row < kRows ? a.R - first_row : kRows);
  const T* from = static_cast<const T*>(a.dy) + first_row * W;
  const int whole = kN == 1 ? 0 : count * W / kN * kN;
  if constexpr (kN > 1) {
    for (int at = threadIdx.x * kN; at < whole; at += kRows * kN) tile::copy16_async(gradients + at, from + at, true);
    tile::commit_copies();
  }
  for (int at = whole + threadIdx.x; at < count * W; at += kRows) gradients[at] = from[at];
  const bool valid = threadIdx.x < count;
  const std::int64_t row = first_row + threadIdx.x;
  float x[kD], dx[kD] = {};
#pragma unroll
  for (int i = 0; i < kD; i += kN) {
    float values[kN] = {};
    if (valid) load_pack(static_cast<const T*>(a.x) + row * kD + i, values);
#pragma unroll
    for (int e = 0; e < kN; ++e) x[i + e] = values[e];
  }
  if constexpr (kN > 1) tile::wait_copies<0>();
  __syncthreads();
  if (!valid) return;
  const T* dy = gradients + threadIdx.x * W;
  const T* pair = dy + 1 + 2 * kD;
#pragma unroll
  for (int i = 0; i < kD; ++i) {
#pragma unroll
    for (int j = i + 1; j < kD; ++j) {
      const float slope = to_float(*pair++);
      dx[i] = fmaf(slope, x[j], dx[i]);
      dx[j] = fmaf(slope, x[i], dx[j]);
    }
  }
#pragma unroll
  for (int i = 0; i < kD; ++i) {
    dx[i] = scales.pair * dx[i] + scales.linear * to_float(dy[1 + i]) +
            2.0f * scales.square * x[i] * to_float(dy[1 + kD + i]);
  }
#pragma unroll
  for (int i = 0; i < kD; i += kN) {
    float values[kN];
#pragma unroll
    for (int e = 0; e < kN; ++e) values[e] = dx[i + e];
    store_pack(static_cast<T*>(a.dx) + row * kD + i, values, a.write_dx);
  }
}

// Any width: a warp for each row, which it holds in shared memory.
constexpr int kWarps = 4;

template <class T>
__global__ void __launch_bounds__(32 * kWarps)
    wide_backward_kernel(FeatureMapBackward a, Scales scales, std::int64_t W) {
  __shared__ float rows[kWarps][kWidest];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, D = static_cast<int>(a.D);
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kWarps + warp;
  if (row >= a.R) return;
  float* x = rows[warp];
  for (int i = lane; i < D; i += 32) x[i] = to_float(static_cast<const T*>(a.x)[row * D + i]);
  __syncwarp();
  const T* dy = static_cast<const T*>(a.dy) + row * W;
  const T* pairs = dy + 1 + 2 * D;
  for (int i = lane; i < D; i += 32) {
    float sum = 0.0f;
    for (int j = 0; j < i; ++j) sum += x[j] * to_float(pairs[first_pair(j, D) + i - j - 1]);
    for (int j = i + 1; j < D; ++j) sum += x[j] * to_float(pairs[first_pair(i, D) + j - i - 1]);
    const float dx[1] = {scales.pair * sum + scales.linear * to_float(dy[1 + i]) +
                         2.0f * scales.square * x[i] * to_float(dy[1 + D + i])};
    store_pack(static_cast<T*>(a.dx) + row * D + i, dx, a.write_dx);
  }
}

template <class T, int kN, int kD>
void launch_backward(const FeatureMapBackward& a, const Launch& launch) {
  constexpr int kRows = kBackwardRows;
  const auto blocks = static_cast<unsigned>((a.R + kRows - 1) / kRows);
  backward_kernel<T, kN, kD><<<blocks, kRows, 0, cuda_stream(launch.stream)>>>(a, Scales(a.D));
}

// --- launchers -------------------------------------------------------------------------------------------------------

inline void check(std::int64_t D) {
  if (D > kWidest) config_error("feature_map: Taylor features of rows of {}; on a GPU at most {}", D, kWidest);
}

template <class T>
void forward(const FeatureMapForward& a, const Launch& launch) {
  check(a.D);
  constexpr int kN = 16 / sizeof(T);
  if (!packs_fit<kN>(static_cast<const T*>(a.y), 0)) return launch_forward<T, 1, 0>(a, launch);
  if (a.D == 16) return launch_forward<T, kN, 16>(a, launch);
  launch_forward<T, kN, 0>(a, launch);
}

template <class T>
void backward(const FeatureMapBackward& a, const Launch& launch) {
  check(a.D);
  constexpr int kN = 16 / sizeof(T);
  const bool aligned = packs_fit<kN>(static_cast<const T*>(a.x), 0) && packs_fit<kN>(static_cast<const T*>(a.dy), 0) &&
                       packs_fit<kN>(static_cast<const T*>(a.dx), 0);
  if (aligned && a.D == 16) return launch_backward<T, kN, 16>(a, launch);
  if (aligned && a.D == 8) return launch_backward<T, kN, 8>(a, launch);
  const auto blocks = static_cast<unsigned>((a.R + kWarps - 1) / kWarps);
  wide_backward_kernel<T>
      <<<blocks, 32 * kWarps, 0, cuda_stream(launch.stream)>>>(a, Scales(a.D), feature_width(FeatureMap::taylor, a.D));
}

}  // namespace weft::taylor
