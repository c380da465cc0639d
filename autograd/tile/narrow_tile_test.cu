#include "autograd/tile/narrow_tile.cuh"
#include "autograd/tile/tile_case.cuh"

namespace weft::tile {
namespace {

constexpr int T = 100, H = 3, D = 96;

struct Memory {
  SharedTile<64, 64> a;
  NarrowTile<64> b, c;
  Barrier full;
};
// c = a b for columns [32, 64) of tokens [y, y + 64) of head 1 of [T, H, D]; b as it lies in the tile goes to `seen`,
// rows [16, 32) of c to the same columns of head 2.
__global__ void __launch_bounds__(128, 1)
    multiply_columns(const __grid_constant__ NarrowMap<64> map, const __grid_constant__ NarrowMap<16> out_map,
                     const bf16* a, float* out, bf16* seen, int y) {
  extern __shared__ __align__(1024) char bytes[];
  auto& m = *reinterpret_cast<Memory*>(bytes);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    m.full.init(1);
    fence_barrier_init();
    m.full.arrive_expect(NarrowTile<64>::kBytes);
    load_tile(m.b, map, m.full, 32, y, 1);
  }
  for (int i = thread; i < 64 * 64; i += 128) m.a.at(i / 64, i % 64) = a[i];
  fence_async_shared();
  __syncthreads();
  m.full.wait(0);
  for (int i = thread; i < 64 * 32; i += 128) seen[i] = m.b.at(i / 32, i % 32);
  Accumulator<32> c;
  wgmma_fence();
  multiply(c, along_columns(m.a), along_rows(m.b));
  wgmma_commit();
  wgmma_wait<0>(c);
  for (int i = 0; i < c.kSize; ++i) {
    out[Accumulator<32>::row(thread, i) * 32 + Accumulator<32>::column(thread, i)] = c.x[i];
  }
  store_rounded(c, m.c, 0, thread);
  fence_async_shared();
  __syncthreads();
  if (thread != 0) return;
  store_rows(out_map, m.c, 16, 32, y, 2);
  commit_stores();
  wait_stores<0>();
}

TEST_F(TileGpuHopper, NarrowTilesAreCopiedAndMultiplied) {
  const HostMatrix x(T, H * D, 1), left(64, 64, 2);
  for (const int y : {0, 7, 50}) {
    const DeviceArray<bf16> in(x.x), a(left.x), seen(64 * 32),
        copied(std::vector<bf16>(T * H * D, __float2bfloat16(9.0f)));
    const DeviceArray<float> out(64 * 32);
    multiply_columns<<<1, 128, sizeof(Memory)>>>(make_narrow_map<64>(in.get(), T, H, D),
                                                 make_narrow_map<16>(copied.get(), T, H, D), a.get(), out.get(),
                                                 seen.get(), y);
    WEFT_CHECK_LAUNCH();
    const auto floats = [](const std::vector<bf16>& from) {
      std::vector<float> to;
      for (const bf16 v : from) to.push_back(__bfloat162float(v));
      return to;
    };
    const auto b = [&](int r, int c) { return y + r < T ? x.at(y + r, D + 32 + c) : 0.0f; };
    const auto product = [&](int r, int c) {
      float sum = 0.0f;
      for (int k = 0; k < 64; ++k) sum += left.at(r, k) * b(k, c);
      return sum;
    };
    EXPECT_TRUE(equals(floats(seen.host()), 64, 32, b)) << "from row " << y;
    EXPECT_TRUE(equals(out.host(), 64, 32, product)) << "from row " << y;
    EXPECT_TRUE(equals(floats(copied.host()), T, H * D,
                       [&](int r, int c) {
                         const int row = r - y, column = c - 2 * D - 32;
                         const bool inside = row >= 0 && row < 16 && column >= 0 && column < 32;
                         return inside ? __bfloat162float(__float2bfloat16(product(row + 16, column))) : 9.0f;
                       }))
        << "from row " << y;
  }
}

}  // namespace
}  // namespace weft::tile
