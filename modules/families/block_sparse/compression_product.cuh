// Products of small matrices whose elements a functor finds: C [M, N] = sum_k A(m, k) B(k, n), for each z. A block of
// threads makes a tile of 64 x 64, steps of 32 in k, sums in the order of k. Floats are multiplied as they are; with
// bf16 activations operands are rounded to bf16 and go to the tensor cores.
//
//   struct Operands {
//     int M, N, K;
//     bool packs;                              // eight neighbours in the directions below can be read at once
//     static constexpr bool kAlongA, kAlongB;  // neighbours lie along k (else along m) for A, along n (else k) for B
//     struct Row;                              // what A's row m needs for all k
//     __device__ Row row(int z, int m) const;
//     __device__ const Element* a(int z, const Row&, int m, int k) const;  // null: zero
//     __device__ float map(float) const;                                   // of what is read for A
//     __device__ const Element* b(int z, int k, int n) const;
//     __device__ void store(int z, const Row&, int m, int n, float sum) const;
//   };
#pragma once

#include <type_traits>

#include "autograd/tile/mma.cuh"
#include "modules/families/block_sparse/block_sparse_device.cuh"

namespace weft::block_sparse {

inline constexpr int kProductTile = 64, kProductStep = 32, kProductThreads = 128;

// Four warps of 16 rows each. Operands lie in shared memory in the direction in which they are read.
template <bool AlongA, bool AlongB>
struct TensorCoreTile {
  using Element = tile::bf16;
  static constexpr int kLeadA = (AlongA ? kProductStep : kProductTile) + 8;
  static constexpr int kLeadB = (AlongB ? kProductTile : kProductStep) + 8;
  static constexpr int kSizeA = (AlongA ? kProductTile : kProductStep) * kLeadA;
  static constexpr int kSizeB = (AlongB ? kProductStep : kProductTile) * kLeadB;
  tile::FragmentC sum[kProductTile / 8] = {};

  __device__ static int place_a(int m, int k) { return AlongA ? m * kLeadA + k : k * kLeadA + m; }
  __device__ static int place_b(int k, int n) { return AlongB ? k * kLeadB + n : n * kLeadB + k; }
  __device__ static void put(Element* to, const float (&x)[8]) {  // neighbours
    *reinterpret_cast<uint4*>(to) =
        make_uint4(tile::pack(x[0], x[1]), tile::pack(x[2], x[3]), tile::pack(x[4], x[5]), tile::pack(x[6], x[7]));
  }
  __device__ void multiply(const Element* a, const Element* b) {
    const tile::SharedMatrix left(a, kLeadA), right(b, kLeadB);
    const int row = static_cast<int>(threadIdx.x) / kWarp * 16;
#pragma unroll
    for (int k = 0; k < kProductStep; k += 16) {
      const tile::FragmentA operand = AlongA ? tile::load_a(left, row, k) : tile::load_a_transposed(left, k, row);
#pragma unroll
      for (int n = 0; n < kProductTile / 16; ++n) {
        tile::FragmentB pair[2];
        AlongB ? tile::load_b(pair, right, k, 16 * n) : tile::load_b_transposed(pair, right, 16 * n, k);
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
template <bool AlongA, bool AlongB>
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

// f(across, along) for every eight neighbours of a tile, shared out among the threads.
template <int Along, int Across, class F>
__device__ inline void for_packs(F&& f) {
  constexpr int kPacks = Along / 8;
#pragma unroll
  for (int i = static_cast<int>(threadIdx.x); i < kPacks * Across; i += kProductThreads) f(i / kPacks, i % kPacks * 8);
}

template <class T, class Operands>
__global__ void __launch_bounds__(kProductThreads) product_kernel(const Operands p) {
  constexpr bool kAlongA = Operands::kAlongA, kAlongB = Operands::kAlongB, kFloats = std::is_same_v<T, float>;
  using Tile = std::conditional_t<kFloats, FloatTile<kAlongA, kAlongB>, TensorCoreTile<kAlongA, kAlongB>>;
  using Element = typename Tile::Element;
  __shared__ __align__(16) Element a[Tile::kSizeA];
  __shared__ __align__(16) Element b[Tile::kSizeB];
  __shared__ typename Operands::Row rows[kProductTile];
  const int m0 = static_cast<int>(blockIdx.x) * kProductTile, n0 = static_cast<int>(blockIdx.y) * kProductTile;
  const int z = static_cast<int>(blockIdx.z), thread = static_cast<int>(threadIdx.x);
  if (thread < kProductTile && m0 + thread < p.M) rows[thread] = p.row(z, m0 + thread);
  __syncthreads();
  const auto find_a = [&](int m, int k) { return m0 + m < p.M && k < p.K ? p.a(z, rows[m], m0 + m, k) : nullptr; };
  const auto find_b = [&](int k, int n) { return k < p.K && n0 + n < p.N ? p.b(z, k, n0 + n) : nullptr; };
  // Eight neighbours of A from (m, k) on, eight of B from (k, n) on.
  const auto copy_a = [&](int m, int k, int k0) {
    const auto* from = p.packs ? find_a(m, k0 + k) : nullptr;
    float x[8] = {};
    if (from != nullptr) load_pack(from, x);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (!p.packs) {
        from = kAlongA ? find_a(m, k0 + k + i) : find_a(m + i, k0 + k);
        if (from != nullptr) x[i] = to_float(*from);
      }
      x[i] = from == nullptr ? 0.0f : p.map(x[i]);
      if constexpr (kFloats) a[kAlongA ? Tile::place_a(m, k + i) : Tile::place_a(m + i, k)] = x[i];
    }
    if constexpr (!kFloats) Tile::put(a + Tile::place_a(m, k), x);
  };
  const auto copy_b = [&](int k, int n, int k0) {
    const auto* from = p.packs ? find_b(k0 + k, n) : nullptr;
    float x[8] = {};
    if (from != nullptr) load_pack(from, x);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (!p.packs) {
        from = kAlongB ? find_b(k0 + k, n + i) : find_b(k0 + k + i, n);
        if (from != nullptr) x[i] = to_float(*from);
      }
      if constexpr (kFloats) b[kAlongB ? Tile::place_b(k, n + i) : Tile::place_b(k + i, n)] = x[i];
    }
    if constexpr (!kFloats) Tile::put(b + Tile::place_b(k, n), x);
  };
  Tile tile;
  for (int k0 = 0; k0 < p.K; k0 += kProductStep) {
    if constexpr (kAlongA) {
      for_packs<kProductStep, kProductTile>([&](int m, int k) { copy_a(m, k, k0); });
    } else {
      for_packs<kProductTile, kProductStep>([&](int k, int m) { copy_a(m, k, k0); });
    }
    if constexpr (kAlongB) {
      for_packs<kProductTile, kProductStep>([&](int k, int n) { copy_b(k, n, k0); });
    } else {
      for_packs<kProductStep, kProductTile>([&](int n, int k) { copy_b(k, n, k0); });
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
  const dim3 grid(blocks_for(p.M, kProductTile), blocks_for(p.N, kProductTile), static_cast<unsigned>(z));
  product_kernel<T><<<grid, kProductThreads, 0, cuda_stream(stream)>>>(p);
  WEFT_CHECK_LAUNCH();
}

// Sums of columns: f.add(z, k, n) over k < K, then f.store(z, n, sum). 32 interleaved chains, added up in order.
inline constexpr int kChains = 32;
template <class F>
__global__ void __launch_bounds__(kChains* kWarp) sum_columns_kernel(const F f) {
  __shared__ float partial[kChains][kWarp];
  const int lane = static_cast<int>(threadIdx.x) % kWarp, chain = static_cast<int>(threadIdx.x) / kWarp;
  const int n = static_cast<int>(blockIdx.x) * kWarp + lane, z = static_cast<int>(blockIdx.y);
  float sum = 0.0f;
  if (n < f.N) {
    for (int k = chain; k < f.K; k += kChains) sum += f.add(z, k, n);
  }
  partial[chain][lane] = sum;
  __syncthreads();
  if (chain != 0 || n >= f.N) return;
  for (int i = 1; i < kChains; ++i) sum += partial[i][lane];
  f.store(z, n, sum);
}
template <class F>
void sum_columns(const F& f, int z, const Stream& stream) {
  if (f.N == 0) return;
  sum_columns_kernel<<<dim3(blocks_for(f.N, kWarp), static_cast<unsigned>(z)), kChains * kWarp, 0,
                       cuda_stream(stream)>>>(f);
  WEFT_CHECK_LAUNCH();
}

}  // namespace weft::block_sparse
