#include <algorithm>

#include "autograd/cuda/map_cuda.cuh"
#include "autograd/cuda/sum_rows.h"

namespace weft {
namespace {

constexpr int kLanes = 32;
constexpr int kWarps = 8;
constexpr std::int64_t kMostBlocks = 64;  // of rows = lines of partial sums

std::int64_t rows_of_block(std::int64_t R) {
  return std::max<std::int64_t>(4 * kWarps, (R + kMostBlocks - 1) / kMostBlocks);
}
std::int64_t line_count(std::int64_t R) {
  const std::int64_t rows = rows_of_block(R);
  return (R + rows - 1) / rows;
}

// lines[block, W]: each warp sums every eighth row of a block into kN columns a lane, then the warps are added in
// order.
template <class T, int kN>
__global__ void __launch_bounds__(kLanes* kWarps)
    sum_blocks(const T* __restrict__ x, std::int64_t R, std::int64_t W, std::int64_t rows, float* __restrict__ lines) {
  __shared__ float partial[kWarps][kLanes * kN];
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  const std::int64_t column = (static_cast<std::int64_t>(blockIdx.x) * kLanes + lane) * kN;
  const std::int64_t begin = blockIdx.y * rows, end = min(R, begin + rows);
  float sum[kN] = {};
  if (column < W) {
    for (std::int64_t row = begin + warp; row < end; row += kWarps) {
      float values[kN];
      load_pack(x + row * W + column, values);
#pragma unroll
      for (int i = 0; i < kN; ++i) sum[i] += values[i];
    }
  }
#pragma unroll
  for (int i = 0; i < kN; ++i) partial[warp][lane * kN + i] = sum[i];
  __syncthreads();
  for (int i = threadIdx.x; i < kLanes * kN; i += kLanes * kWarps) {
    const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kLanes * kN + i;
    if (at >= W) return;
    float total = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += partial[w][i];
    lines[blockIdx.y * W + at] = total;
  }
}

__global__ void add_lines(const float* __restrict__ lines, int count, std::int64_t W, float* __restrict__ target,
                          Write write) {
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (column >= W) return;
  float total = 0.0f;
  for (int line = 0; line < count; ++line) total += lines[line * W + column];
  target[column] = write == Write::overwrite ? total : target[column] + total;
}

}  // namespace

std::size_t sum_rows_workspace(std::int64_t R, std::int64_t W) {
  return static_cast<std::size_t>(line_count(R) * W) * sizeof(float);
}

void sum_rows_cuda(DType dtype, const void* x, std::int64_t R, std::int64_t W, float* target, Write write,
                   const Launch& launch) {
  if (W == 0) return;
  auto* lines = static_cast<float*>(launch.workspace);
  const std::int64_t count = line_count(R);
  const cudaStream_t stream = cuda_stream(launch.stream);
  if (count > 0) {
    dispatch_cuda(dtype, "sum over rows", [&]<class T>() {
      const auto* rows = static_cast<const T*>(x);
      const auto run = [&]<int kN>() {
        const dim3 grid(static_cast<unsigned>((W + kLanes * kN - 1) / (kLanes * kN)), static_cast<unsigned>(count));
        sum_blocks<T, kN><<<grid, kLanes * kWarps, 0, stream>>>(rows, R, W, rows_of_block(R), lines);
      };
      if (packs_fit<8>(rows, W)) {
        run.template operator()<8>();
      } else {
        run.template operator()<1>();
      }
    });
    WEFT_CHECK_LAUNCH();
  }
  add_lines<<<static_cast<unsigned>((W + 255) / 256), 256, 0, stream>>>(lines, static_cast<int>(count), W, target,
                                                                        write);
  WEFT_CHECK_LAUNCH();
}

}  // namespace weft
