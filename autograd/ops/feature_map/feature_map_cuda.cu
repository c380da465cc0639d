// CUDA kernels of feature_map.h. The backward forms features again from x, in fp32, where the CPU reads them.
#include "autograd/cuda/map_cuda.cuh"
#include "autograd/cuda/row_tile.cuh"
#include "autograd/ops/feature_map/feature_map.h"

namespace weft {
namespace {

// --- elu + 1 ---------------------------------------------------------------------------------------------------------

struct EluPlusOne {
  __device__ void operator()(float x, float& y) const { y = x > 0.0f ? x + 1.0f : expf(x); }
};
struct EluPlusOneGradient {
  __device__ void operator()(float x, float dy, float& dx) const { dx = x > 0.0f ? dy : dy * expf(x); }
};

// --- pairs of softmaxes ----------------------------------------------------------------------------------------------

constexpr float kFloor = 1e-12f;

// softmax(sign x) of a row in registers, before the floor; lanes beyond it hold zeros.
template <class T, class Tile>
__device__ void softmax(const Tile& tile, const typename Tile::template Held<T>& x, float sign,
                        float (&p)[Tile::kPacks][Tile::kN]) {
  float largest = -INFINITY;
#pragma unroll
  for (int i = 0; i < Tile::kPacks; ++i) {
#pragma unroll
    for (int c = 0; c < Tile::kN; ++c) {
      if (tile.holds(i)) largest = fmaxf(largest, sign * x[i][c]);
    }
  }
  largest = Tile::max(largest);
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < Tile::kPacks; ++i) {
#pragma unroll
    for (int c = 0; c < Tile::kN; ++c) {
      p[i][c] = tile.holds(i) ? expf(sign * x[i][c] - largest) : 0.0f;
      sum += p[i][c];
    }
  }
  const float scale = 1.0f / Tile::sum(sum);
#pragma unroll
  for (int i = 0; i < Tile::kPacks; ++i) {
#pragma unroll
    for (int c = 0; c < Tile::kN; ++c) p[i][c] = tile.holds(i) ? p[i][c] * scale : 0.0f;
  }
}

template <class T, class Tile>
__global__ void __launch_bounds__(Tile::kThreads) softmax_pair_forward_kernel(FeatureMapForward a) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * Tile::kRows + Tile::row_of_block();
  const Tile tile(row < a.R ? a.D : 0);
  typename Tile::template Held<T> x;
  tile.load(static_cast<const T*>(a.x) + row * a.D, x);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float p[Tile::kPacks][Tile::kN];
    softmax<T>(tile, x, half == 0 ? 1.0f : -1.0f, p);
#pragma unroll
    for (int i = 0; i < Tile::kPacks; ++i) {
      if (!tile.holds(i)) continue;
#pragma unroll
      for (int c = 0; c < Tile::kN; ++c) p[i][c] = p[i][c] <= kFloor ? kFloor : p[i][c];  // NaN stays
      store_pack(static_cast<T*>(a.y) + (2 * row + half) * a.D + tile.column(i), p[i]);
    }
  }
}

// dx = p (dy - <p, dy>) - m (dy' - <m, dy'>); a feature at the floor passes nothing on.
template <class T, class Tile>
__global__ void __launch_bounds__(Tile::kThreads) softmax_pair_backward_kernel(FeatureMapBackward a) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * Tile::kRows + Tile::row_of_block();
  const Tile tile(row < a.R ? a.D : 0);
  typename Tile::template Held<T> x;
  tile.load(static_cast<const T*>(a.x) + row * a.D, x);
  float dx[Tile::kPacks][Tile::kN] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float sign = half == 0 ? 1.0f : -1.0f;
    float p[Tile::kPacks][Tile::kN];
    softmax<T>(tile, x, sign, p);
    typename Tile::template Held<T> dy;
    tile.load(static_cast<const T*>(a.dy) + (2 * row + half) * a.D, dy);
    float mean = 0.0f;
#pragma unroll
    for (int i = 0; i < Tile::kPacks; ++i) {
#pragma unroll
      for (int c = 0; c < Tile::kN; ++c) {
        if (p[i][c] <= kFloor) p[i][c] = 0.0f;
        mean += p[i][c] * dy[i][c];
      }
    }
    mean = Tile::sum(mean);
#pragma unroll
    for (int i = 0; i < Tile::kPacks; ++i) {
#pragma unroll
      for (int c = 0; c < Tile::kN; ++c) dx[i][c] += sign * p[i][c] * (dy[i][c] - mean);
    }
  }
#pragma unroll
  for (int i = 0; i < Tile::kPacks; ++i) {
    if (tile.holds(i)) store_pack(static_cast<T*>(a.dx) + row * a.D + tile.column(i), dx[i], a.write_dx);
  }
}

// --- Taylor ----------------------------------------------------------------------------------------------------------

// A warp for each row, which it holds in shared memory.
constexpr int kRowsOfBlock = 4;
constexpr int kTaylorThreads = 32 * kRowsOfBlock;
constexpr std::int64_t kWidestTaylor = 256;

struct TaylorScales {
  explicit TaylorScales(std::int64_t D)
      : linear(static_cast<float>(std::pow(static_cast<double>(D), -0.25))),
        square(static_cast<float>(std::sqrt(0.5 / static_cast<double>(D)))),
        pair(static_cast<float>(std::sqrt(1.0 / static_cast<double>(D)))) {}
  float linear, square, pair;
};

// Products of channels i < j, in the order of i, then j: where that of i with i + 1 stands.
__device__ int first_pair(int i, int D) {
  return i * (2 * D - i - 1) / 2;
}

template <class T>
__global__ void __launch_bounds__(kTaylorThreads)
    taylor_forward_kernel(FeatureMapForward a, TaylorScales scales, std::int64_t W) {
  __shared__ float rows[kRowsOfBlock][kWidestTaylor];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, D = static_cast<int>(a.D);
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kRowsOfBlock + warp;
  if (row >= a.R) return;
  float* x = rows[warp];
  for (int i = lane; i < D; i += 32) x[i] = to_float(static_cast<const T*>(a.x)[row * D + i]);
  __syncwarp();
  T* y = static_cast<T*>(a.y) + row * W;
  for (int at = lane; at < W; at += 32) {
    float feature = 1.0f;
    if (at > 2 * D) {
      const int k = at - 1 - 2 * D;
      const auto b = static_cast<float>(2 * D - 1);
      int i = static_cast<int>(0.5f * (b - sqrtf(b * b - 8.0f * static_cast<float>(k))));
      while (i > 0 && first_pair(i, D) > k) --i;
      while (first_pair(i + 1, D) <= k) ++i;
      feature = scales.pair * x[i] * x[k - first_pair(i, D) + i + 1];
    } else if (at > D) {
      feature = scales.square * x[at - 1 - D] * x[at - 1 - D];
    } else if (at > 0) {
      feature = scales.linear * x[at - 1];
    }
    y[at] = from_float<T>(feature);
  }
}

template <class T>
__global__ void __launch_bounds__(kTaylorThreads)
    taylor_backward_kernel(FeatureMapBackward a, TaylorScales scales, std::int64_t W) {
  __shared__ float rows[kRowsOfBlock][kWidestTaylor];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, D = static_cast<int>(a.D);
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kRowsOfBlock + warp;
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

void check_taylor(std::int64_t D) {
  if (D > kWidestTaylor) {
    config_error("feature_map: Taylor features of rows of {}; on a GPU at most {}", D, kWidestTaylor);
  }
}

template <class T>
bool fits(const void* data, std::int64_t D) {
  return packs_fit<16 / sizeof(T)>(static_cast<const T*>(data), D);
}

unsigned blocks_for(std::int64_t rows, int rows_of_block) {
  return static_cast<unsigned>((rows + rows_of_block - 1) / rows_of_block);
}

}  // namespace

void feature_map_forward_cuda(const FeatureMapForward& a, const Launch& launch) {
  if (a.R == 0) return;
  const cudaStream_t stream = cuda_stream(launch.stream);
  dispatch_cuda(a.dtype, "feature_map", [&]<class T>() {
    switch (a.map) {
      case FeatureMap::identity:
        fail(ExitCode::internal, "feature_map: the identity is not computed");
      case FeatureMap::taylor:
        check_taylor(a.D);
        taylor_forward_kernel<T><<<blocks_for(a.R, kRowsOfBlock), kTaylorThreads, 0, stream>>>(
            a, TaylorScales(a.D), feature_width(a.map, a.D));
        break;
      case FeatureMap::softmax_pair:
        dispatch_row_tile<T>("feature_map", a.D, fits<T>(a.x, a.D) && fits<T>(a.y, a.D), [&]<class Tile>() {
          softmax_pair_forward_kernel<T, Tile><<<blocks_for(a.R, Tile::kRows), Tile::kThreads, 0, stream>>>(a);
        });
        break;
      case FeatureMap::elu_plus_one:
        map_cuda(launch, a.R * a.D, map_inputs(static_cast<const T*>(a.x)),
                 map_outputs(map_output(static_cast<T*>(a.y))), EluPlusOne{});
        break;
    }
    WEFT_CHECK_LAUNCH();
  });
}

void feature_map_backward_cuda(const FeatureMapBackward& a, const Launch& launch) {
  if (a.R == 0 || a.dx == nullptr) return;
  const cudaStream_t stream = cuda_stream(launch.stream);
  dispatch_cuda(a.dtype, "feature_map", [&]<class T>() {
    switch (a.map) {
      case FeatureMap::identity:
        fail(ExitCode::internal, "feature_map: the identity is not computed");
      case FeatureMap::taylor:
        check_taylor(a.D);
        taylor_backward_kernel<T><<<blocks_for(a.R, kRowsOfBlock), kTaylorThreads, 0, stream>>>(
            a, TaylorScales(a.D), feature_width(a.map, a.D));
        break;
      case FeatureMap::softmax_pair:
        dispatch_row_tile<T>(
            "feature_map", a.D, fits<T>(a.x, a.D) && fits<T>(a.dy, a.D) && fits<T>(a.dx, a.D), [&]<class Tile>() {
              softmax_pair_backward_kernel<T, Tile><<<blocks_for(a.R, Tile::kRows), Tile::kThreads, 0, stream>>>(a);
            });
        break;
      case FeatureMap::elu_plus_one:
        map_cuda(launch, a.R * a.D, map_inputs(static_cast<const T*>(a.x), static_cast<const T*>(a.dy)),
                 map_outputs(map_output(static_cast<T*>(a.dx), a.write_dx)), EluPlusOneGradient{});
        break;
    }
    WEFT_CHECK_LAUNCH();
  });
}

}  // namespace weft
