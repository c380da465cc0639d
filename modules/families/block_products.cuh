// What kernels share in which one thread block works through products of small matrices, in fp32 (or fp64): where its
// arrays lie, the products, and sums.
//
// All threads of the block call the functions here together. Each ends with a barrier, so what one wrote the next may
// read; an argument of one must not be written by it.
#pragma once

#include <cstdint>

#include "autograd/cuda/cuda_check.cuh"
#include "autograd/cuda/pack.cuh"

namespace weft {

inline constexpr int kBlockThreads = 256;
inline constexpr int kBlockWarps = kBlockThreads / 32;

// --- arrays

// An array of the block: in its shared memory, or in its part of the workspace.
struct BlockArray {
  std::uint32_t offset = 0;
  std::uint32_t shared = 0;
};

// Gives out arrays, in shared memory while there is room: what is used most comes first.
class BlockLayout {
 public:
  // Leaves room for the tiles of products, also on devices with less shared memory than Hopper's.
  static constexpr std::int64_t kSharedFloats = 136 * 1024 / 4;

  BlockArray take(std::int64_t floats) {
    const std::int64_t padded = (floats + 3) / 4 * 4;
    const bool fits = shared_ + padded <= kSharedFloats;
    std::int64_t& used = fits ? shared_ : global_;
    const BlockArray array{static_cast<std::uint32_t>(used), fits ? 1U : 0U};
    used += padded;
    return array;
  }
  std::size_t shared_bytes() const { return static_cast<std::size_t>(shared_) * sizeof(float); }
  std::int64_t global_floats() const { return global_; }  // of one block

 private:
  std::int64_t shared_ = 0, global_ = 0;
};

struct BlockMemory {
  float* shared;
  float* global;
  __device__ float* operator[](BlockArray a) const { return (a.shared != 0 ? shared : global) + a.offset; }
};

// Lets `kernel` have the dynamic shared memory of the layout, and launches it.
template <class... Parameters, class... Args>
void launch_blocks(void (*kernel)(Parameters...), dim3 grid, std::size_t shared_bytes, const Stream& stream,
                   const Args&... args) {
  if (shared_bytes > 0) {
    WEFT_CUDA_CALL(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                        cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
  }
  kernel<<<grid, kBlockThreads, shared_bytes, cuda_stream(stream)>>>(args...);
  WEFT_CHECK_LAUNCH();
}

// How many blocks of `size` cover n.
constexpr std::int64_t blocks_of(std::int64_t n, std::int64_t size) {
  return (n + size - 1) / size;
}

// --- loops and sums

// The thread, its warp and its lane.
__device__ inline int block_thread() {
  return static_cast<int>(threadIdx.x);
}
__device__ inline int block_warp() {
  return block_thread() / 32;
}
__device__ inline int block_lane() {
  return block_thread() % 32;
}

// f(i) for i in [0, n)
template <class F>
__device__ void block_for(int n, F&& f) {
  for (int i = block_thread(); i < n; i += kBlockThreads) f(i);
  __syncthreads();
}

// f(row, lane): a warp for each row.
template <class F>
__device__ void block_rows(int n, F&& f) {
  for (int i = block_warp(); i < n; i += kBlockWarps) f(i, block_lane());
  __syncthreads();
}

// f(row, column): a warp for each row, its lanes along the columns.
template <class F>
__device__ void block_elements(int n, int width, F&& f) {
  block_rows(n, [&](int i, int lane) {
    for (int c = lane; c < width; c += 32) f(i, c);
  });
}

// The sum over the lanes of a warp, in all of them.
template <class Real>
__device__ Real warp_sum(Real x) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(0xffffffffU, x, lanes);
  return x;
}

// f(c) summed over c in [0, width) by a warp.
template <class F>
__device__ float warp_sum_of(int width, int lane, F&& f) {
  float sum = 0.0F;
  for (int c = lane; c < width; c += 32) sum += f(c);
  return warp_sum(sum);
}

// f(i) summed over i in [0, n) by the block, in fp64: in every thread.
template <class F>
__device__ double block_sum(int n, F&& f) {
  __shared__ double partial[kBlockWarps];
  double sum = 0.0;
  for (int i = block_thread(); i < n; i += kBlockThreads) sum += f(i);
  sum = warp_sum(sum);
  if (block_lane() == 0) partial[block_warp()] = sum;
  __syncthreads();
  sum = 0.0;
  for (int warp = 0; warp < kBlockWarps; ++warp) sum += partial[warp];
  __syncthreads();
  return sum;
}

template <class T>
__device__ void store_value(T& target, float value, Write write) {
  target = from_float<T>(write == Write::overwrite ? value : to_float(target) + value);
}

// --- products

__device__ inline double to_float(double x) {
  return x;
}

// A matrix to multiply with: rows `row` elements apart, columns `column`; one of them is 1.
template <class T>
struct MatrixView {
  const T* data;
  int row, column;

  __device__ MatrixView transposed() const { return {data, column, row}; }
  __device__ MatrixView from(int i, int j) const { return {data + i * row + j * column, row, column}; }
};
template <class T>
__device__ MatrixView<T> view(const T* data, int ld) {
  return {data, ld, 1};
}
template <class T>
__device__ MatrixView<T> transposed(const T* data, int ld) {
  return {data, 1, ld};
}

namespace detail {

template <class Real>
inline constexpr int kProductDepth = 128 / sizeof(Real);  // of a staged slice
inline constexpr int kProductColumns = 64;                // of a tile
inline constexpr int kProductPad = 4;                     // keeps rows of a slice aligned and off each other's banks

template <class Real>
struct ProductSlices {
  Real a[kProductDepth<Real> * (64 + kProductPad)];  // [depth, rows]
  Real b[kProductDepth<Real> * (kProductColumns + kProductPad)];
};
template <class Real>
__device__ ProductSlices<Real>& product_slices() {
  alignas(16) __shared__ unsigned char raw[sizeof(ProductSlices<Real>)];
  return *reinterpret_cast<ProductSlices<Real>*>(raw);
}

// The elements of a slice [depth, extent] that this thread carries, the s-th of them `step` after the one before: lanes
// follow what is contiguous in memory.
template <int kExtent, class Real>
struct SlicePart {
  static constexpr int kDepth = kProductDepth<Real>;
  static constexpr int kCount = kExtent * kDepth / kBlockThreads;
  int x, k, x_step, k_step;  // x along the rows or columns of the product, k along its depth

  __device__ explicit SlicePart(bool along_depth) {
    constexpr int kGroups = kDepth / 8;
    const int warp = block_warp(), lane = block_lane();
    x = along_depth ? lane / 8 + 4 * (warp / kGroups) : block_thread() % kExtent;
    k = along_depth ? lane % 8 + 8 * (warp % kGroups) : block_thread() / kExtent;
    x_step = along_depth ? 4 * (kBlockWarps / kGroups) : 0;
    k_step = along_depth ? 0 : kBlockThreads / kExtent;
  }

  // From an operand with X and K elements; zero outside.
  template <class T>
  __device__ void fetch(const T* from, int x_stride, int k_stride, int X, int K, Real (&to)[kCount]) const {
    from += x * x_stride + k * k_stride;
    const int stride = x_step * x_stride + k_step * k_stride;
#pragma unroll
    for (int s = 0; s < kCount; ++s) {
      const bool inside = x + s * x_step < X && k + s * k_step < K;
      to[s] = inside ? static_cast<Real>(to_float(from[s * stride])) : Real(0);
    }
  }
  __device__ void put(const Real (&from)[kCount], Real* to) const {
    constexpr int kLine = kExtent + kProductPad;
    to += k * kLine + x;
    const int stride = k_step * kLine + x_step;
#pragma unroll
    for (int s = 0; s < kCount; ++s) to[s * stride] = from[s];
  }
};

}  // namespace detail

// acc = A B for the tile of kRows x 64 elements at A's and B's first: M, N, K elements are there. A thread has kRows/16
// x 4 of them: rows (thread / 16) kRows/16 and on, columns (thread % 16) 4 and on. Terms are added in the order of k.
template <int kRows, class Real, class A, class B>
__device__ void product_tile(const MatrixView<A>& a, const MatrixView<B>& b, int M, int N, int K,
                             Real (&acc)[kRows / 16][4]) {
  using namespace detail;
  constexpr int kMine = kRows / 16;
  constexpr int kDepth = kProductDepth<Real>;
  ProductSlices<Real>& slices = product_slices<Real>();
  const int my_row = block_thread() / 16 * kMine, my_column = block_thread() % 16 * 4;
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) acc[i][j] = Real(0);
  }
  const SlicePart<kRows, Real> part_a(a.column == 1);
  const SlicePart<kProductColumns, Real> part_b(b.row == 1);
  Real next_a[part_a.kCount], next_b[part_b.kCount];
  const auto fetch = [&](int k) {
    part_a.fetch(a.data + k * a.column, a.row, a.column, M, K - k, next_a);
    part_b.fetch(b.data + k * b.row, b.column, b.row, N, K - k, next_b);
  };
  const auto multiply = [&](int i) {
    const Pack<Real, kMine> left =
        *reinterpret_cast<const Pack<Real, kMine>*>(slices.a + i * (kRows + kProductPad) + my_row);
    const Pack<Real, 4> right =
        *reinterpret_cast<const Pack<Real, 4>*>(slices.b + i * (kProductColumns + kProductPad) + my_column);
#pragma unroll
    for (int r = 0; r < kMine; ++r) {
#pragma unroll
      for (int c = 0; c < 4; ++c) acc[r][c] = fma(left.data[r], right.data[c], acc[r][c]);
    }
  };
  fetch(0);
  for (int k = 0; k < K; k += kDepth) {
    part_a.put(next_a, slices.a);
    part_b.put(next_b, slices.b);
    __syncthreads();
    if (k + kDepth < K) fetch(k + kDepth);
    if (K - k >= kDepth) {
#pragma unroll 8
      for (int i = 0; i < kDepth; ++i) multiply(i);
    } else {
      for (int i = 0; i < K - k; ++i) multiply(i);
    }
    __syncthreads();
  }
}

namespace detail {

template <int kRows, class Real, class A, class B>
__device__ void product_rows(MatrixView<A> a, MatrixView<B> b, int M, int N, int K, Real alpha, Real beta, Real* C,
                             int ld) {
  constexpr int kMine = kRows / 16;
  const int my_row = block_thread() / 16 * kMine, my_column = block_thread() % 16 * 4;
  for (int n = 0; n < N; n += kProductColumns) {
    Real acc[kMine][4];
    product_tile<kRows>(a, b.from(0, n), M, N - n, K, acc);
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (my_row + i >= M || n + my_column + j >= N) continue;
        Real& c = C[(my_row + i) * ld + n + my_column + j];
        c = beta == Real(0) ? alpha * acc[i][j] : alpha * acc[i][j] + beta * c;
      }
    }
  }
}

}  // namespace detail

// C [M, N], rows ld apart, = alpha A B + beta C. Not inlined: kernels have dozens of them.
template <class Real, class A, class B>
__device__ __noinline__ void block_product(int M, int N, int K, Real alpha, MatrixView<A> a, MatrixView<B> b, Real beta,
                                           Real* C, int ld) {
  for (int m = 0; m < M;) {
    if (M - m > 16) {
      const int rows = M - m < 64 ? M - m : 64;
      detail::product_rows<64>(a.from(m, 0), b, rows, N, K, alpha, beta, C + m * ld, ld);
      m += 64;
    } else {
      detail::product_rows<16>(a.from(m, 0), b, M - m, N, K, alpha, beta, C + m * ld, ld);
      m += 16;
    }
  }
  __syncthreads();
}

}  // namespace weft
