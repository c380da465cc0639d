// Kernels of gated_linear_features.cuh: a block for each row, which it keeps in shared memory.
//
// D width of a row, W of its features.
#include "modules/families/gated_linear/gated_linear_features.cuh"

namespace weft {
namespace {

constexpr int kThreads = 128;
constexpr float kFloor = 1e-12f;  // least feature of a softmax

// Reduction over the block; every thread gets the result.
template <class F>
__device__ float reduce(float x, F&& f) {
  __shared__ float warps[kThreads / 32];
  for (int d = 16; d > 0; d /= 2) x = f(x, __shfl_xor_sync(0xffffffffu, x, d));
  __syncthreads();
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
  __syncthreads();
  x = warps[0];
  for (int w = 1; w < kThreads / 32; ++w) x = f(x, warps[w]);
  return x;
}
__device__ float sum(float x) {
  return reduce(x, [](float a, float b) { return a + b; });
}
__device__ float largest(float x) {
  return reduce(x, [](float a, float b) { return fmaxf(a, b); });
}

// Factors of the Taylor features.
struct Taylor {
  __device__ explicit Taylor(int D)
      : linear(1.0f / sqrtf(sqrtf(static_cast<float>(D)))),
        square(sqrtf(0.5f / static_cast<float>(D))),
        pair(sqrtf(1.0f / static_cast<float>(D))) {}
  // Where the product of channels i < j stands.
  static __device__ int pair_index(int D, int i, int j) { return 1 + 2 * D + i * (2 * D - i - 1) / 2 + j - i - 1; }

  float linear, square, pair;
};

__global__ void __launch_bounds__(kThreads) features(FeatureMap map, DeviceRows x, float* y_rows, std::int64_t W) {
  extern __shared__ float row[];
  const int D = static_cast<int>(x.width);
  const std::int64_t t = blockIdx.x / x.heads, h = blockIdx.x % x.heads;
  float* y = y_rows + static_cast<std::int64_t>(blockIdx.x) * W;
  for (int i = threadIdx.x; i < D; i += kThreads) row[i] = x.at(t, h, i);
  __syncthreads();
  switch (map) {
    case FeatureMap::identity:
      for (int i = threadIdx.x; i < D; i += kThreads) y[i] = row[i];
      return;
    case FeatureMap::elu_plus_one:
      for (int i = threadIdx.x; i < D; i += kThreads) y[i] = row[i] > 0.0f ? row[i] + 1.0f : expf(row[i]);
      return;
    case FeatureMap::taylor: {
      const Taylor factors(D);
      if (threadIdx.x == 0) y[0] = 1.0f;
      for (int i = threadIdx.x; i < D; i += kThreads) {
        y[1 + i] = factors.linear * row[i];
        y[1 + D + i] = factors.square * row[i] * row[i];
        for (int j = i + 1; j < D; ++j) y[Taylor::pair_index(D, i, j)] = factors.pair * row[i] * row[j];
      }
      return;
    }
    case FeatureMap::softmax_pair:
      for (int half = 0; half < 2; ++half) {
        const float sign = half == 0 ? 1.0f : -1.0f;
        float top = -INFINITY, total = 0.0f;
        for (int i = threadIdx.x; i < D; i += kThreads) top = fmaxf(top, sign * row[i]);
        top = largest(top);
        for (int i = threadIdx.x; i < D; i += kThreads) total += expf(sign * row[i] - top);
        total = sum(total);
        for (int i = threadIdx.x; i < D; i += kThreads) {
          y[half * D + i] = fmaxf(expf(sign * row[i] - top) / total, kFloor);
        }
      }
      return;
  }
}

__global__ void __launch_bounds__(kThreads)
    features_backward(FeatureMap map, std::int64_t shared, std::int64_t W, DeviceRows x, const float* y_rows,
                      const float* dy_rows, DeviceRows dx, Write write) {
  extern __shared__ float row[];  // [D] x, [W] dy
  const int D = static_cast<int>(x.width);
  float* dy = row + D;
  const std::int64_t t = blockIdx.x / x.heads, h = blockIdx.x % x.heads;
  for (int i = threadIdx.x; i < D; i += kThreads) row[i] = x.at(t, h, i);
  for (std::int64_t i = threadIdx.x; i < W; i += kThreads) {
    float total = 0.0f;
    for (std::int64_t s = 0; s < shared; ++s) {
      total += dy_rows[(static_cast<std::int64_t>(blockIdx.x) * shared + s) * W + i];
    }
    dy[i] = total;
  }
  __syncthreads();
  const float* y = y_rows + static_cast<std::int64_t>(blockIdx.x) * W;
  switch (map) {
    case FeatureMap::identity:
      for (int i = threadIdx.x; i < D; i += kThreads) dx.put(t, h, i, dy[i], write);
      return;
    case FeatureMap::elu_plus_one:
      for (int i = threadIdx.x; i < D; i += kThreads) {
        dx.put(t, h, i, row[i] > 0.0f ? dy[i] : dy[i] * y[i], write);
      }
      return;
    case FeatureMap::taylor: {
      const Taylor factors(D);
      for (int i = threadIdx.x; i < D; i += kThreads) {
        float total = 0.0f;
        for (int j = 0; j < i; ++j) total += row[j] * dy[Taylor::pair_index(D, j, i)];
        for (int j = i + 1; j < D; ++j) total += row[j] * dy[Taylor::pair_index(D, i, j)];
        dx.put(t, h, i,
               factors.pair * total + factors.linear * dy[1 + i] + 2.0f * factors.square * row[i] * dy[1 + D + i],
               write);
      }
      return;
    }
    case FeatureMap::softmax_pair: {
      const auto free = [&](int i) { return y[i] > kFloor ? y[i] : 0.0f; };  // one at the floor passes nothing on
      float up = 0.0f, down = 0.0f;
      for (int i = threadIdx.x; i < D; i += kThreads) up += free(i) * dy[i], down += free(D + i) * dy[D + i];
      up = sum(up), down = sum(down);
      for (int i = threadIdx.x; i < D; i += kThreads) {
        dx.put(t, h, i, free(i) * (dy[i] - up) - free(D + i) * (dy[D + i] - down), write);
      }
      return;
    }
  }
}

}  // namespace

void feature_rows_cuda(FeatureMap map, std::int64_t R, const DeviceRows& x, float* y, cudaStream_t stream) {
  const std::size_t shared = static_cast<std::size_t>(x.width) * sizeof(float);
  features<<<static_cast<unsigned>(R), kThreads, shared, stream>>>(map, x, y, feature_width(map, x.width));
  WEFT_CHECK_LAUNCH();
}

void feature_rows_backward_cuda(FeatureMap map, std::int64_t R, std::int64_t shared, std::int64_t W,
                                const DeviceRows& x, const float* y, const float* dy, const DeviceRows& dx, Write write,
                                cudaStream_t stream) {
  const std::size_t bytes = static_cast<std::size_t>(x.width + W) * sizeof(float);
  features_backward<<<static_cast<unsigned>(R), kThreads, bytes, stream>>>(map, shared, W, x, y, dy, dx, write);
  WEFT_CHECK_LAUNCH();
}

}  // namespace weft
