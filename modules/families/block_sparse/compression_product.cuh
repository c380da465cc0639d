// Products of small matrices whose elements a functor finds: C [M, N] = sum_k A(m, k) B(k, n), for each z. A block of
// threads makes a tile of 64 x 64, steps of 32 in k, sums in the order of k. Floats are multiplied as they are; with
// bf16 activations operands are rounded to bf16 and go to the tensor cores.
//
//   struct Operands {
//     int M, N, K;
//     static constexpr bool kAlongA, kAlongB;        // neighbours in k (for A), in n (for B) lie side by side
//     struct Row;                                    // what A's row m needs for all k
//     __device__ Row row(int z, int m) const;
//     __device__ float a(int z, const Row&, int m, int k) const;
//     __device__ float b(int z, int k, int n) const;
//     __device__ void store(int z, const Row&, int m, int n, float sum) const;
//   };
#pragma once

#include <type_traits>

#include "autograd/tile/mma.cuh"
#include "modules/families/block_sparse/block_sparse_device.cuh"

namespace weft::block_sparse {

inline constexpr int kProductTile = 64, kProductStep = 32, kProductThreads = 128;

// Four warps of 16 rows each.
struct TensorCoreTile {
  using Element = tile::bf16;
  static constexpr int kLeadA = kProductStep + 8, kLeadB = kProductTile + 8;
  static constexpr int kSizeA = kProductTile * kLeadA, kSizeB = kProductStep * kLeadB;
  tile::FragmentC sum[kProductTile / 8] = {};

  __device__ static int place_a(int m, int k) { return m * kLeadA + k; }
  __device__ static int place_b(int k, int n) { return k * kLeadB + n; }
  __device__ void multiply(const Element* a, const Element* b) {
    const tile::SharedMatrix left(a, kLeadA), right(b, kLeadB);
    const int row = static_cast<int>(threadIdx.x) / kWarp * 16;
#pragma unroll
    for (int k = 0; k < kProductStep; k += 16) {
      const tile::FragmentA operand = tile::load_a(left, row, k);
#pragma unroll
      for (int n = 0; n < kProductTile / 16; ++n) {
        tile::FragmentB pair[2];
        tile::load_b(pair, right, k, 16 * n);
        tile::mma(sum[2 * n], operand, pair[0]);
        tile::mma(sum[2 * n + 1], operand, pair[1]);
      }
    }
  }
  // f(m, n, value) for the elements of this thread.
  template <class F>
  __device__ void for_elements(F&& f) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp, row = static_cast<int>(threadIdx.x) / kWarp * 16 + lane / 4;
#pragma unroll
    for (int n = 0; n < kProductTile / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) f(row + i / 2 * 8, 8 * n + lane % 4 * 2 + i % 2, sum[n].x[i]);
    }
  }
};

// Threads in 8 x 16, each with 8 rows and 4 columns.
struct FloatTile {
  using Element = float;
  static constexpr int kLeadA = kProductTile + 4, kLeadB = kProductTile + 4;
  static constexpr int kSizeA = kProductStep * kLeadA, kSizeB = kProductStep * kLeadB;
  float sum[8][4] = {};

  __device__ static int place_a(int m, int k) { return k * kLeadA + m; }
  __device__ static int place_b(int k, int n) { return k * kLeadB + n; }
  __device__ void multiply(const Element* a, const Element* b) {
    const int row = static_cast<int>(threadIdx.x) / 16 * 8, column = static_cast<int>(threadIdx.x) % 16 * 4;
    for (int k = 0; k < kProductStep; ++k) {
      float x[8], y[4];
      load_pack(a + k * kLeadA + row, x);
      load_pack(b + k * kLeadB + column, y);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] += x[i] * y[j];
      }
    }
  }
  template <class F>
  __device__ void for_elements(F&& f) const {
    const int row = static_cast<int>(threadIdx.x) / 16 * 8, column = static_cast<int>(threadIdx.x) % 16 * 4;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) f(row + i, column + j, sum[i][j]);
    }
  }
};

template <class Tile, class Operands>
__global__ void __launch_bounds__(kProductThreads) product_kernel(const Operands p) {
  using Element = typename Tile::Element;
  __shared__ __align__(16) Element a[Tile::kSizeA];
  __shared__ __align__(16) Element b[Tile::kSizeB];
  __shared__ typename Operands::Row rows[kProductTile];
  const auto put = [](float x) {
    if constexpr (std::is_same_v<Element, float>) {
      return x;
    } else {
      return __float2bfloat16_rn(x);
    }
  };
  const int m0 = static_cast<int>(blockIdx.x) * kProductTile, n0 = static_cast<int>(blockIdx.y) * kProductTile;
  const int z = static_cast<int>(blockIdx.z), thread = static_cast<int>(threadIdx.x);
  if (thread < kProductTile && m0 + thread < p.M) rows[thread] = p.row(z, m0 + thread);
  __syncthreads();
  Tile tile;
  for (int k0 = 0; k0 < p.K; k0 += kProductStep) {
#pragma unroll 4
    for (int i = thread; i < kProductTile * kProductStep; i += kProductThreads) {
      const int m = Operands::kAlongA ? i / kProductStep : i % kProductTile;
      const int k = Operands::kAlongA ? i % kProductStep : i / kProductTile;
      const bool there = m0 + m < p.M && k0 + k < p.K;
      a[Tile::place_a(m, k)] = put(there ? p.a(z, rows[m], m0 + m, k0 + k) : 0.0f);
    }
#pragma unroll 4
    for (int i = thread; i < kProductTile * kProductStep; i += kProductThreads) {
      const int n = Operands::kAlongB ? i % kProductTile : i / kProductStep;
      const int k = Operands::kAlongB ? i / kProductTile : i % kProductStep;
      const bool there = n0 + n < p.N && k0 + k < p.K;
      b[Tile::place_b(k, n)] = put(there ? p.b(z, k0 + k, n0 + n) : 0.0f);
    }
    __syncthreads();
    tile.multiply(a, b);
    __syncthreads();
  }
  tile.for_elements([&](int m, int n, float sum) {
    if (m0 + m < p.M && n0 + n < p.N) p.store(z, rows[m], m0 + m, n0 + n, sum);
  });
}

// T: type of activations.
template <class T, class Operands>
void multiply(const Operands& p, int z, const Stream& stream) {
  if (p.M == 0 || p.N == 0) return;
  using Tile = std::conditional_t<std::is_same_v<T, float>, FloatTile, TensorCoreTile>;
  const dim3 grid(blocks_for(p.M, kProductTile), blocks_for(p.N, kProductTile), static_cast<unsigned>(z));
  product_kernel<Tile><<<grid, kProductThreads, 0, cuda_stream(stream)>>>(p);
  WEFT_CHECK_LAUNCH();
}

// Sums of columns: f.add(z, k, n) over k < K, then f.store(z, n, sum). A fixed tree of 8 interleaved chains.
template <class F>
__global__ void __launch_bounds__(256) sum_columns_kernel(const F f) {
  __shared__ float partial[8][kWarp];
  const int lane = static_cast<int>(threadIdx.x) % kWarp, chain = static_cast<int>(threadIdx.x) / kWarp;
  const int n = static_cast<int>(blockIdx.x) * kWarp + lane, z = static_cast<int>(blockIdx.y);
  float sum = 0.0f;
  if (n < f.N) {
    for (int k = chain; k < f.K; k += 8) sum += f.add(z, k, n);
  }
  partial[chain][lane] = sum;
  __syncthreads();
  if (chain != 0 || n >= f.N) return;
  for (int i = 1; i < 8; ++i) sum += partial[i][lane];
  f.store(z, n, sum);
}
template <class F>
void sum_columns(const F& f, int z, const Stream& stream) {
  if (f.N == 0) return;
  sum_columns_kernel<<<dim3(blocks_for(f.N, kWarp), static_cast<unsigned>(z)), 256, 0, cuda_stream(stream)>>>(f);
  WEFT_CHECK_LAUNCH();
}

}  // namespace weft::block_sparse
