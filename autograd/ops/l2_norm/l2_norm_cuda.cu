// CUDA kernels of l2_norm.h: one pass over the rows, held in registers.
#include "autograd/cuda/row_tile.cuh"
#include "autograd/ops/l2_norm/l2_norm.h"

namespace weft {
namespace {

template <class T, class Tile>
__global__ void __launch_bounds__(Tile::kThreads) l2_norm_forward_kernel(L2NormForward a) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * Tile::kRows + Tile::row_of_block();
  const Tile tile(i < a.R ? a.D : 0);
  const std::int64_t at = i * a.D;
  typename Tile::template Held<T> x;
  tile.load(static_cast<const T*>(a.x) + at, x);
  float squares = 0.0f;
#pragma unroll
  for (int p = 0; p < Tile::kPacks; ++p) {
#pragma unroll
    for (int c = 0; c < Tile::kN; ++c) squares += x[p][c] * x[p][c];
  }
  const float r = rsqrtf(Tile::sum(squares) + static_cast<float>(a.eps));
  if (tile.leads()) static_cast<float*>(a.rnorm)[i] = r;
#pragma unroll
  for (int p = 0; p < Tile::kPacks; ++p) {
    if (!tile.holds(p)) continue;
    float y[Tile::kN];
#pragma unroll
    for (int c = 0; c < Tile::kN; ++c) y[c] = x[p][c] * r;
    store_pack(static_cast<T*>(a.y) + at + tile.column(p), y);
  }
}

template <class T, class Tile>
__global__ void __launch_bounds__(Tile::kThreads) l2_norm_backward_kernel(L2NormBackward a) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * Tile::kRows + Tile::row_of_block();
  const Tile tile(i < a.R ? a.D : 0);
  const std::int64_t at = i * a.D;
  typename Tile::template Held<T> x, dy;
  tile.load(static_cast<const T*>(a.x) + at, x);
  tile.load(static_cast<const T*>(a.dy) + at, dy);
  const float r = i < a.R ? static_cast<const float*>(a.rnorm)[i] : 0.0f;
  float dot = 0.0f;
#pragma unroll
  for (int p = 0; p < Tile::kPacks; ++p) {
#pragma unroll
    for (int c = 0; c < Tile::kN; ++c) dot += x[p][c] * dy[p][c];
  }
  const float k = Tile::sum(dot) * r * r;
#pragma unroll
  for (int p = 0; p < Tile::kPacks; ++p) {
    if (!tile.holds(p)) continue;
    float dx[Tile::kN];
#pragma unroll
    for (int c = 0; c < Tile::kN; ++c) dx[c] = r * (dy[p][c] - x[p][c] * k);
    store_pack(static_cast<T*>(a.dx) + at + tile.column(p), dx, a.write_dx);
  }
}

template <class T>
bool fits(const void* data, std::int64_t D) {
  return packs_fit<16 / sizeof(T)>(static_cast<const T*>(data), D);
}

}  // namespace

void l2_norm_forward_cuda(const L2NormForward& a, const Launch& launch) {
  if (a.R == 0) return;
  dispatch_cuda(a.dtype, "l2_norm", [&]<class T>() {
    dispatch_row_tile<T>("l2_norm", a.D, fits<T>(a.x, a.D) && fits<T>(a.y, a.D), [&]<class Tile>() {
      const auto blocks = static_cast<unsigned>((a.R + Tile::kRows - 1) / Tile::kRows);
      l2_norm_forward_kernel<T, Tile><<<blocks, Tile::kThreads, 0, cuda_stream(launch.stream)>>>(a);
    });
  });
  WEFT_CHECK_LAUNCH();
}

void l2_norm_backward_cuda(const L2NormBackward& a, const Launch& launch) {
  if (a.R == 0 || a.dx == nullptr) return;
  dispatch_cuda(a.dtype, "l2_norm", [&]<class T>() {
    const bool aligned = fits<T>(a.x, a.D) && fits<T>(a.dy, a.D) && fits<T>(a.dx, a.D);
    dispatch_row_tile<T>("l2_norm", a.D, aligned, [&]<class Tile>() {
      const auto blocks = static_cast<unsigned>((a.R + Tile::kRows - 1) / Tile::kRows);
      l2_norm_backward_kernel<T, Tile><<<blocks, Tile::kThreads, 0, cuda_stream(launch.stream)>>>(a);
    });
  });
  WEFT_CHECK_LAUNCH();
}

}  // namespace weft
