// CUDA kernels of feature_map.h. The backward forms features again from x, in fp32, where the CPU reads them.
#include "autograd/cuda/map_cuda.cuh"
#include "autograd/cuda/row_tile.cuh"
#include "autograd/ops/feature_map/feature_map.h"
#include "autograd/ops/feature_map/taylor.cuh"

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
        taylor::forward<T>(a, launch);
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
        taylor::backward<T>(a, launch);
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
