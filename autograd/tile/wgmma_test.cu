#include "autograd/tile/tile_case.cuh"
#include "autograd/tile/tma.cuh"
#include "autograd/tile/wgmma.cuh"

namespace weft::tile {
namespace {

// Which way operands lie: `columns` = contracted along the tile's columns (K-major), `rows` = along its rows.
enum class Kind { both_columns, right_rows, left_rows, both_rows, left_in_registers, left_loaded };

template <int N, int K, Kind kKind>
struct Shape {
  static constexpr bool kLeftRows = kKind == Kind::left_rows || kKind == Kind::both_rows;
  static constexpr bool kRightRows =
      kKind == Kind::right_rows || kKind == Kind::both_rows || kKind == Kind::left_in_registers;
  // Two blocks of 64 rows, of which the second is multiplied.
  using Left = SharedTile<kLeftRows ? K : 128, kLeftRows ? 128 : K>;
  using Right = SharedTile<kRightRows ? K : N, kRightRows ? N : K>;
};

template <int N, int K, Kind kKind>
struct Memory {
  typename Shape<N, K, kKind>::Left a;
  typename Shape<N, K, kKind>::Right b;
  Barrier ready;
};

template <int N, int K, Kind kKind>
__global__ void __launch_bounds__(128, 1)
    product(const __grid_constant__ TileMap<Shape<N, K, kKind>::Left::kRows, 2> a_map,
            const __grid_constant__ TileMap<Shape<N, K, kKind>::Right::kRows, 2> b_map, float* out) {
  extern __shared__ __align__(1024) char bytes[];
  auto& m = *reinterpret_cast<Memory<N, K, kKind>*>(bytes);
  using S = Shape<N, K, kKind>;
  const int thread = threadIdx.x;
  if (thread == 0) {
    m.ready.init(1);
    fence_barrier_init();
  }
  __syncthreads();
  if (thread == 0) {
    m.ready.arrive_expect(S::Left::kBytes + S::Right::kBytes);
    load_tile(m.a, a_map, m.ready, 0, 0);
    load_tile(m.b, b_map, m.ready, 0, 0);
  }
  m.ready.wait(0);
  Accumulator<N> c;
  c.fill(1.0f);
  RegisterOperand<K> registers;
  if constexpr (kKind == Kind::left_in_registers) {
    Accumulator<K> left;
#pragma unroll
    for (int i = 0; i < Accumulator<K>::kSize; ++i) {
      left.x[i] = to_float(m.a.at(64 + Accumulator<K>::row(thread, i), Accumulator<K>::column(thread, i)));
    }
    round_to_operand(registers, left);
    wgmma_fence(registers);
  } else if constexpr (kKind == Kind::left_loaded) {
    load_operand(registers, m.a, 64, 0, thread);
    wgmma_fence(registers);
  }
  wgmma_fence(c);
  const auto right = [&] {
    if constexpr (S::kRightRows) {
      return along_rows(m.b);
    } else {
      return along_columns(m.b);
    }
  }();
  if constexpr (kKind == Kind::left_in_registers || kKind == Kind::left_loaded) {
    multiply_add(c, registers, right);
  } else if constexpr (S::kLeftRows) {
    multiply_add(c, along_rows(m.a).template part<64, 64>(), right);
  } else {
    multiply_add(c, along_columns(m.a).template part_at<64>(1), right);
  }
  wgmma_commit();
  wgmma_wait<0>();
#pragma unroll
  for (int i = 0; i < Accumulator<N>::kSize; ++i) {
    out[Accumulator<N>::row(thread, i) * N + Accumulator<N>::column(thread, i)] = c.x[i];
  }
}

template <int N, int K, Kind kKind>
void check() {
  using S = Shape<N, K, kKind>;
  const HostMatrix a(S::Left::kRows, S::Left::kCols, 1), b(S::Right::kRows, S::Right::kCols, 2);
  const DeviceArray<bf16> a_in(a.x), b_in(b.x);
  const DeviceArray<float> out(64 * N);
  const auto a_map = make_tile_map<S::Left::kRows, 2>({a_in.get(), {a.cols, a.rows}, {1, a.cols}});
  const auto b_map = make_tile_map<S::Right::kRows, 2>({b_in.get(), {b.cols, b.rows}, {1, b.cols}});
  const auto kernel = &product<N, K, kKind>;
  constexpr int kBytes = sizeof(Memory<N, K, kKind>);
  WEFT_CUDA_CALL(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  kernel<<<1, 128, kBytes>>>(a_map, b_map, out.get());
  WEFT_CHECK_LAUNCH();
  EXPECT_TRUE(equals(out.host(), 64, N,
                     [&](int r, int c) {
                       float sum = 1;
                       for (int k = 0; k < K; ++k) {
                         sum += (S::kLeftRows ? a.at(k, 64 + r) : a.at(64 + r, k)) *
                                (S::kRightRows ? b.at(k, c) : b.at(c, k));
                       }
                       return sum;
                     }))
      << "N " << N << " K " << K << " kind " << static_cast<int>(kKind);
}

TEST_F(TileGpuHopper, WgmmaBothAlongColumns) {
  check<64, 64, Kind::both_columns>();
  check<128, 128, Kind::both_columns>();
  check<16, 64, Kind::both_columns>();
  check<32, 64, Kind::both_columns>();
  check<96, 64, Kind::both_columns>();
  check<192, 192, Kind::both_columns>();
  check<256, 64, Kind::both_columns>();
}
TEST_F(TileGpuHopper, WgmmaRightAlongRows) {
  check<64, 64, Kind::right_rows>();
  check<128, 64, Kind::right_rows>();
  check<192, 128, Kind::right_rows>();
  check<256, 128, Kind::right_rows>();
}
TEST_F(TileGpuHopper, WgmmaLeftAlongRows) {
  check<64, 64, Kind::left_rows>();
  check<128, 128, Kind::left_rows>();
}
TEST_F(TileGpuHopper, WgmmaBothAlongRows) {
  check<64, 64, Kind::both_rows>();
  check<128, 128, Kind::both_rows>();
}
TEST_F(TileGpuHopper, WgmmaLeftInRegisters) {
  check<64, 64, Kind::left_in_registers>();
  check<128, 64, Kind::left_in_registers>();
  check<256, 64, Kind::left_in_registers>();
  check<64, 64, Kind::left_loaded>();
  check<128, 128, Kind::left_loaded>();
}

// The second half of a panel as a right operand along rows.
struct HalfMemory {
  SharedTile<64, 64> left, right;
};
__global__ void __launch_bounds__(128, 1) half_panel(const bf16* a, const bf16* b, float* out) {
  extern __shared__ __align__(1024) char bytes[];
  auto& m = *reinterpret_cast<HalfMemory*>(bytes);
  for (int i = threadIdx.x; i < 64 * 64; i += 128) {
    m.left.at(i / 64, i % 64) = a[i];
    m.right.at(i / 64, i % 64) = b[i];
  }
  fence_async_shared();
  __syncthreads();
  Accumulator<32> c;
  wgmma_fence();
  multiply(c, along_columns(m.left), along_rows(m.right).template part_at<32>(1));
  wgmma_commit();
  wgmma_wait<0>(c);
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    out[Accumulator<32>::row(threadIdx.x, i) * 32 + Accumulator<32>::column(threadIdx.x, i)] = c.x[i];
  }
}

TEST_F(TileGpuHopper, WgmmaHalfPanel) {
  const HostMatrix a(64, 64, 1), b(64, 64, 2);
  const DeviceArray<bf16> a_in(a.x), b_in(b.x);
  const DeviceArray<float> out(64 * 32);
  half_panel<<<1, 128, sizeof(HalfMemory)>>>(a_in.get(), b_in.get(), out.get());
  WEFT_CHECK_LAUNCH();
  EXPECT_TRUE(equals(out.host(), 64, 32, [&](int r, int c) {
    float sum = 0;
    for (int k = 0; k < 64; ++k) sum += a.at(r, k) * b.at(k, 32 + c);
    return sum;
  }));
}

// An accumulator goes through stmatrix into a tile and comes back transposed by the tensor cores: identity^T tile.
struct StoreMemory {
  SharedTile<64, 64> left, tile;
};
__global__ void __launch_bounds__(128, 1) store_and_read(float* out) {
  extern __shared__ __align__(1024) char bytes[];
  auto& m = *reinterpret_cast<StoreMemory*>(bytes);
  const int thread = threadIdx.x;
  Accumulator<64> c;
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    c.x[i] = static_cast<float>(Accumulator<64>::row(thread, i) * 2 + Accumulator<64>::column(thread, i) % 16 * 8);
  }
  store_rounded(c, m.tile, 0, 0, thread);
  for (int i = thread; i < 64 * 64; i += 128) m.left.at(i / 64, i % 64) = from_float<bf16>(i / 64 == i % 64 ? 1 : 0);
  fence_async_shared();
  __syncthreads();
  wgmma_fence(c);
  multiply(c, along_columns(m.left), along_rows(m.tile));
  wgmma_commit();
  wgmma_wait<0>();
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    out[Accumulator<64>::row(thread, i) * 64 + Accumulator<64>::column(thread, i)] = c.x[i];
  }
}

TEST_F(TileGpuHopper, StoresRoundedAccumulators) {
  const DeviceArray<float> out(64 * 64);
  store_and_read<<<1, 128, sizeof(StoreMemory)>>>(out.get());
  WEFT_CHECK_LAUNCH();
  EXPECT_TRUE(equals(out.host(), 64, 64, [](int r, int c) { return static_cast<float>(2 * r + c % 16 * 8); }));
}

}  // namespace
}  // namespace weft::tile
