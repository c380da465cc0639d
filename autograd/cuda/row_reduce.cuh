// Sums over rows without atomics, in an order that depends on the shape alone: blocks of rows are summed into lines of
// a workspace, and the lines are added in order. The CUDA counterpart of autograd/block_sum.h.
//
// R rows, W width of a row. Lines and sums are float, or double where terms of both signs leave little.
#pragma once

#include <algorithm>

#include "autograd/cuda/cuda_check.cuh"
#include "autograd/cuda/early_launch.cuh"
#include "autograd/cuda/pack.cuh"

namespace weft {

struct ColumnBlocks {
  std::int64_t rows;   // of one block
  std::int64_t count;  // of blocks = lines of the workspace
};

// Blocks that fill an H100 once, four on each of its processors, so that there are few lines. Sums in double take more
// registers: there fewer fit, and several rounds even out.
template <class Sum = float>
ColumnBlocks column_blocks(std::int64_t R, std::int64_t W) {
  constexpr std::int64_t kBlocks = sizeof(Sum) == sizeof(float) ? 528 : 2048, kColumns = 256, kFewestRows = 64;
  const auto parts = [](std::int64_t n, std::int64_t size) { return (n + size - 1) / size; };
  const std::int64_t most = std::max<std::int64_t>(1, kBlocks * kColumns / std::max<std::int64_t>(W, kColumns / 4));
  const std::int64_t rows = std::max(kFewestRows, parts(R, most));
  return {rows, std::max<std::int64_t>(1, parts(R, rows))};
}

template <class Sum = float>
std::size_t column_sums_workspace(std::int64_t R, std::int64_t W, int sums) {
  return static_cast<std::size_t>(column_blocks<Sum>(R, W).count * W * sums) * sizeof(Sum);
}

namespace detail {

inline constexpr int kColumnThreads = 256;
inline constexpr int kColumnRows = kColumnThreads / 32;  // rows that a block works on at once

template <int kN, int kSums, class Sum, class F>
__global__ void __launch_bounds__(kColumnThreads, F::kResidentBlocks)
    column_sums_kernel(std::int64_t R, std::int64_t W, std::int64_t rows, Sum* lines, F f) {
  const int lane = threadIdx.x % 32, part = threadIdx.x / 32;
  const std::int64_t column = (static_cast<std::int64_t>(blockIdx.x) * 32 + lane) * kN;
  const std::int64_t begin = blockIdx.y * rows;
  const std::int64_t end = begin + rows < R ? begin + rows : R;
  Sum sums[kSums][kN] = {};
  if (column < W) {
    const auto shared_by_rows = f.template prepare<kN>(column);
    // Rows are asked for a few at once; in float they are added up before they become part of a sum in double.
    const auto add_rows = [&]<int kCount>(std::int64_t row) {
      typename F::template Held<kN> held[kCount];
#pragma unroll
      for (int k = 0; k < kCount; ++k) held[k] = f.template load<kN>(row + k * kColumnRows, column);
      float few[kSums][kN] = {};
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        f.template add<kN>(shared_by_rows, held[k], row + k * kColumnRows, column, few);
      }
#pragma unroll
      for (int s = 0; s < kSums; ++s) {
#pragma unroll
        for (int i = 0; i < kN; ++i) sums[s][i] += static_cast<Sum>(few[s][i]);
      }
    };
    std::int64_t row = begin + part;
    for (; row + (F::kAhead - 1) * kColumnRows < end; row += F::kAhead * kColumnRows) {
      add_rows.template operator()<F::kAhead>(row);
    }
    for (; row < end; row += kColumnRows) add_rows.template operator()<1>(row);
  }
  let_next_kernel_start();
  __shared__ Sum shared[kColumnRows][kSums * kN][32];
#pragma unroll
  for (int s = 0; s < kSums; ++s) {
#pragma unroll
    for (int i = 0; i < kN; ++i) shared[part][s * kN + i][lane] = sums[s][i];
  }
  __syncthreads();
  for (int at = threadIdx.x; at < kSums * kN * 32; at += kColumnThreads) {
    // Consecutive threads take consecutive columns.
    const int s = at / (kN * 32), c = at % (kN * 32);
    const std::int64_t to = static_cast<std::int64_t>(blockIdx.x) * 32 * kN + c;
    if (to >= W) continue;
    Sum total = 0;
#pragma unroll
    for (int p = 0; p < kColumnRows; ++p) total += shared[p][s * kN + c % kN][c / kN];
    lines[(static_cast<std::int64_t>(blockIdx.y) * kSums + s) * W + to] = total;
  }
}

// For the 32 columns from 32 `block` on; lines are `stride` numbers apart. Blocks of 1024 threads.
template <class Sum, class Put>
__device__ void add_columns(const Sum* lines, std::int64_t count, std::int64_t stride, std::int64_t W,
                            std::int64_t block, const Put& put) {
  const int lane = threadIdx.x % 32, part = threadIdx.x / 32;
  const std::int64_t column = block * 32 + lane;
  Sum sum = 0;
  if (column < W) {
#pragma unroll 4
    for (std::int64_t line = part; line < count; line += 32) sum += lines[line * stride + column];
  }
  __shared__ Sum shared[32][33];
  shared[part][lane] = sum;
  __syncthreads();
  Sum total = shared[lane][part];  // column `part` of the block, share `lane` of its lines
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) total += __shfl_xor_sync(0xffffffffu, total, mask);
  const std::int64_t to = block * 32 + part;
  if (lane == 0 && to < W) put(to, static_cast<float>(total));
}

// For a group of `width` columns: warps share out the lines, lanes the columns. Blocks of 1024 threads.
template <class Sum, class Put>
__device__ void add_group(const Sum* lines, std::int64_t count, std::int64_t stride, std::int64_t width,
                          std::int64_t group, const Put& put) {
  const int lane = threadIdx.x % 32, part = threadIdx.x / 32;
  Sum sum = 0;
#pragma unroll 2
  for (std::int64_t line = part; line < count; line += 32) {
    const Sum* from = lines + line * stride + group * width;
#pragma unroll 4
    for (std::int64_t c = lane; c < width; c += 32) sum += from[c];
  }
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
  __shared__ Sum warps[32];
  if (lane == 0) warps[part] = sum;
  __syncthreads();
  if (part > 0) return;
  sum = warps[lane];
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
  if (lane == 0) put(group, static_cast<float>(sum));
}

template <class Sum, class Put>
__global__ void __launch_bounds__(1024)
    add_lines_kernel(const Sum* lines, std::int64_t count, std::int64_t W, Put put) {
  wait_for_earlier_kernels();
  add_columns(lines, count, W, W, blockIdx.x, put);
}

template <class Sum, class Put>
__global__ void __launch_bounds__(1024)
    add_groups_kernel(const Sum* lines, std::int64_t count, std::int64_t stride, std::int64_t width, Put put) {
  wait_for_earlier_kernels();
  add_group(lines, count, stride, width, blockIdx.x, put);
}

}  // namespace detail

// Where a total goes.
struct PutTotal {
  float* target;
  Write write;
  __device__ void operator()(std::int64_t at, float total) const {
    target[at] = write == Write::overwrite ? total : target[at] + total;
  }
};

// Packs of floats that a functor prepares for its columns.
template <int kN, int kCount = 1>
struct ColumnPacks {
  float data[kCount][kN];
};

// lines[count, kSums, W] of column_blocks(R, W): f.template add<kN>(prepared, held, row, column, float
// (&sums)[kSums][kN]) adds what columns [column, column + kN) of a row give, with what f.template prepare<kN>(column)
// returned and f.template load<kN>(row, column) read, an F::Held<kN>; F::kAhead rows are read at a time, and a
// processor is to hold F::kResidentBlocks blocks of 256 threads. kN divides W.
template <int kN, int kSums, class Sum, class F>
void column_sums(const Launch& launch, std::int64_t R, std::int64_t W, Sum* lines, const F& f) {
  if (W == 0) return;
  const ColumnBlocks blocks = column_blocks<Sum>(R, W);
  const dim3 grid(static_cast<unsigned>((W + 32 * kN - 1) / (32 * kN)), static_cast<unsigned>(blocks.count));
  detail::column_sums_kernel<kN, kSums>
      <<<grid, detail::kColumnThreads, 0, cuda_stream(launch.stream)>>>(R, W, blocks.rows, lines, f);
  WEFT_CHECK_LAUNCH();
}

// put(column, total) for each column of lines[count, W].
template <class Sum, class Put>
void add_lines(const Launch& launch, const Sum* lines, std::int64_t count, std::int64_t W, const Put& put) {
  if (W == 0) return;
  launch_early(detail::add_lines_kernel<Sum, Put>, static_cast<unsigned>((W + 31) / 32), 1024,
               cuda_stream(launch.stream), lines, count, W, put);
}

// put(group, total) for groups of `width` neighbouring columns; lines are `stride` numbers apart.
template <class Sum, class Put>
void add_groups(const Launch& launch, const Sum* lines, std::int64_t count, std::int64_t stride, std::int64_t groups,
                std::int64_t width, const Put& put) {
  if (groups == 0) return;
  launch_early(detail::add_groups_kernel<Sum, Put>, static_cast<unsigned>(groups), 1024, cuda_stream(launch.stream),
               lines, count, stride, width, put);
}

}  // namespace weft
