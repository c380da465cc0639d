// CUDA kernels of head_skip.h.
#include "autograd/cuda/map_rows.cuh"
#include "autograd/cuda/row_reduce.cuh"
#include "autograd/cuda/row_tile.cuh"
#include "autograd/ops/head_skip/head_skip.h"

namespace weft {
namespace {

// y = o + scale x, or, without o, scale x: the gradient of x. A row holds the heads of a token.
template <class T>
struct Skip {
  const T* o;
  const T* x;
  const float* scale;
  T* y;
  Write write;
  std::int64_t W, D;

  template <int kN>
  __device__ void at(std::int64_t row, std::int64_t column) const {
    const std::int64_t at = row * W + column;
    const float s = scale[static_cast<std::uint32_t>(column) / static_cast<std::uint32_t>(D)];
    float sum[kN] = {}, values[kN];
    if (o != nullptr) load_pack(o + at, sum);
    load_pack(x + at, values);
#pragma unroll
    for (int c = 0; c < kN; ++c) sum[c] += s * values[c];
    store_pack(y + at, sum, write);
  }
};

// Sums of dy x, and dx on the way.
template <class T>
struct SkipGradients {
  HeadSkipBackward a;

  template <int kN>
  __device__ float prepare(std::int64_t column) const {
    return static_cast<const float*>(a.scale)[static_cast<std::uint32_t>(column) / static_cast<std::uint32_t>(a.D)];
  }

  static constexpr int kAhead = 2, kResidentBlocks = 4;
  template <int kN>
  struct Held {
    HeldPack<T, kN> x, dy;
  };
  template <int kN>
  __device__ Held<kN> load(std::int64_t row, std::int64_t column) const {
    const std::int64_t at = row * a.H * a.D + column;
    return {HeldPack<T, kN>::load(static_cast<const T*>(a.x) + at),
            HeldPack<T, kN>::load(static_cast<const T*>(a.dy) + at)};
  }
  template <int kN>
  __device__ void add(float scale, const Held<kN>& held, std::int64_t row, std::int64_t column,
                      float (&sums)[1][kN]) const {
    float dx[kN];
#pragma unroll
    for (int c = 0; c < kN; ++c) {
      sums[0][c] = fmaf(held.x[c], held.dy[c], sums[0][c]);
      dx[c] = held.dy[c] * scale;
    }
    if (a.dx != nullptr) store_pack(static_cast<T*>(a.dx) + row * a.H * a.D + column, dx, a.write_dx);
  }
};

// A pack lies in one head.
template <class T>
bool fits(const void* data, std::int64_t D) {
  return packs_fit<16 / sizeof(T)>(static_cast<const T*>(data), D);
}

}  // namespace

void head_skip_forward_cuda(const HeadSkipForward& a, const Launch& launch) {
  dispatch_cuda(a.dtype, "head_skip", [&]<class T>() {
    map_rows<16 / sizeof(T)>(launch, a.T, a.H * a.D, fits<T>(a.o, a.D) && fits<T>(a.x, a.D) && fits<T>(a.y, a.D),
                             Skip<T>{.o = static_cast<const T*>(a.o),
                                     .x = static_cast<const T*>(a.x),
                                     .scale = static_cast<const float*>(a.scale),
                                     .y = static_cast<T*>(a.y),
                                     .write = Write::overwrite,
                                     .W = a.H * a.D,
                                     .D = a.D});
  });
}

std::size_t head_skip_backward_cuda_workspace(const HeadSkipBackward& a) {
  return a.dscale == nullptr ? 0 : column_sums_workspace(a.T, a.H * a.D, 1);
}

void head_skip_backward_cuda(const HeadSkipBackward& a, const Launch& launch) {
  dispatch_cuda(a.dtype, "head_skip", [&]<class T>() {
    constexpr int kN = 16 / sizeof(T);
    const std::int64_t W = a.H * a.D;
    const bool aligned = fits<T>(a.x, a.D) && fits<T>(a.dy, a.D) && fits<T>(a.dx, a.D);
    if (a.dscale == nullptr) {
      if (a.dx == nullptr) return;
      return map_rows<kN>(launch, a.T, W, aligned,
                          Skip<T>{.o = nullptr,
                                  .x = static_cast<const T*>(a.dy),
                                  .scale = static_cast<const float*>(a.scale),
                                  .y = static_cast<T*>(a.dx),
                                  .write = a.write_dx,
                                  .W = W,
                                  .D = a.D});
    }
    auto* lines = static_cast<float*>(launch.workspace);
    if (aligned) {
      column_sums<kN, 1>(launch, a.T, W, lines, SkipGradients<T>{a});
    } else {
      column_sums<1, 1>(launch, a.T, W, lines, SkipGradients<T>{a});
    }
    add_groups(launch, lines, column_blocks(a.T, W).count, W, a.H, a.D,
               PutTotal{static_cast<float*>(a.dscale), a.write_dscale});
  });
}

}  // namespace weft
