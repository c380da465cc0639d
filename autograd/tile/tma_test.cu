#include "autograd/tile/tile_case.cuh"
#include "autograd/tile/tma.cuh"

namespace weft::tile {
namespace {

constexpr int T = 100, H = 3, D = 96;  // the tiles are wider and, at the end, longer than the tensor

struct CopyMemory {
  SharedTile<64, 128> tile;
  Barrier full;
};
// Tokens [y, y + 64) of head 1 of [T, H, D] through shared memory into [64, 128].
__global__ void copy_in(const __grid_constant__ TileMap<64, 3> map, bf16* out, int y) {
  extern __shared__ __align__(1024) char bytes[];
  auto& m = *reinterpret_cast<CopyMemory*>(bytes);
  if (threadIdx.x == 0) {
    m.full.init(1);
    fence_barrier_init();
    prefetch_map(map);
    m.full.arrive_expect(SharedTile<64, 128>::kBytes);
    load_tile(m.tile, map, m.full, 0, y, 1);
  }
  __syncthreads();
  m.full.wait(0);
  for (int i = threadIdx.x; i < 64 * 128; i += blockDim.x) out[i] = m.tile.at(i / 128, i % 128);
}

TEST_F(TileGpuHopper, LoadsTilesAndZeroesWhatIsOutside) {
  const HostMatrix x(T, H * D, 1);
  const DeviceArray<bf16> in(x.x), out(64 * 128);
  const auto map = make_head_map<64>(in.get(), T, H, D);
  for (const int y : {0, 7, 64, -5, 200}) {
    copy_in<<<1, 128, sizeof(CopyMemory)>>>(map, out.get(), y);
    WEFT_CHECK_LAUNCH();
    const auto got = out.host();
    std::vector<float> values;
    for (const bf16 v : got) values.push_back(__bfloat162float(v));
    EXPECT_TRUE(equals(values, 64, 128,
                       [&](int r, int c) { return y + r >= 0 && y + r < T && c < D ? x.at(y + r, D + c) : 0.0f; }))
        << "from row " << y;
  }
}

__global__ void copy_out(const __grid_constant__ TileMap<64, 3> map, const bf16* in, int y) {
  extern __shared__ __align__(1024) char bytes[];
  auto& m = *reinterpret_cast<CopyMemory*>(bytes);
  for (int i = threadIdx.x; i < 64 * 128; i += blockDim.x) m.tile.at(i / 128, i % 128) = in[i];
  fence_async_shared();
  __syncthreads();
  if (threadIdx.x == 0) {
    store_tile(map, m.tile, 0, y, 2);
    commit_stores();
    wait_stores<0>();
  }
}

TEST_F(TileGpuHopper, StoresTilesInsideTheTensor) {
  const HostMatrix x(64, 128, 2);
  const DeviceArray<bf16> in(x.x), out(std::vector<bf16>(T * H * D, __float2bfloat16(9.0f)));
  copy_out<<<1, 128, sizeof(CopyMemory)>>>(make_head_map<64>(out.get(), T, H, D), in.get(), 50);
  WEFT_CHECK_LAUNCH();
  std::vector<float> values;
  for (const bf16 v : out.host()) values.push_back(__bfloat162float(v));
  EXPECT_TRUE(
      equals(values, T, H * D, [&](int r, int c) { return r >= 50 && c >= 2 * D ? x.at(r - 50, c - 2 * D) : 9.0f; }));
}

// A producer warp and two consumer warpgroups around a ring of 3 stages; every consumer sums what it sees.
struct RingMemory {
  float stage[3][128];
  Barrier full[3], empty[3];
};
__global__ void __launch_bounds__(384, 1) ring(const float* in, float* out, int rounds) {
  __shared__ alignas(128) RingMemory m;
  if (threadIdx.x == 0) {
    for (int i = 0; i < 3; ++i) {
      m.full[i].init(1);
      m.empty[i].init(256);
    }
    fence_barrier_init();
  }
  __syncthreads();
  PipelineState<3> state;
  if (threadIdx.x < 128) {
    shrink_registers<24>();
    if (threadIdx.x == 0) {
      for (int i = 0; i < rounds; ++i, state.advance()) {
        m.empty[state.stage].wait(state.parity() ^ 1);
        m.full[state.stage].arrive_expect(512);
        load_bytes(m.stage[state.stage], in + i * 128, 512, m.full[state.stage]);
      }
    }
  } else {
    grow_registers<160>();
    const int group = threadIdx.x / 128 - 1, thread = threadIdx.x % 128;
    float sum = 0;
    for (int i = 0; i < rounds; ++i, state.advance()) {
      m.full[state.stage].wait(state.parity());
      sum += m.stage[state.stage][thread];
      m.empty[state.stage].arrive();
    }
    out[group * 128 + thread] = sum;
  }
}

TEST_F(TileGpuHopper, PipelineOfWarpgroups) {
  constexpr int kRounds = 50;
  std::vector<float> x;
  for (int i = 0; i < kRounds * 128; ++i) x.push_back(static_cast<float>(i % 97));
  const DeviceArray<float> in(x), out(256);
  ring<<<1, 384>>>(in.get(), out.get(), kRounds);
  WEFT_CHECK_LAUNCH();
  EXPECT_TRUE(equals(out.host(), 2, 128, [&](int, int c) {
    float sum = 0;
    for (int i = 0; i < kRounds; ++i) sum += x[static_cast<std::size_t>(i * 128 + c)];
    return sum;
  }));
}

// Blocks add to the same floats one after another, in the order of their numbers.
__global__ void ordered_sums(float* sums, int* turn) {
  __shared__ alignas(128) float mine[256];
  mine[threadIdx.x] = static_cast<float>(threadIdx.x + blockIdx.x);
  fence_async_shared();
  __syncthreads();
  if (threadIdx.x != 0) return;
  while (atomicAdd(turn, 0) != static_cast<int>(blockIdx.x)) {
  }
  __threadfence();
  fence_async_global();
  if (blockIdx.x == 0) {
    store_bytes(sums, mine, sizeof(mine));
  } else {
    add_floats(sums, mine, sizeof(mine));
  }
  commit_stores();
  wait_stores<0>();
  fence_async_global();
  __threadfence();
  atomicAdd(turn, 1);
}

TEST_F(TileGpuHopper, AddsFloatsInTurn) {
  const DeviceArray<float> sums(256);
  const DeviceArray<int> turn(std::vector<int>{0});
  ordered_sums<<<20, 256>>>(sums.get(), turn.get());
  WEFT_CHECK_LAUNCH();
  EXPECT_TRUE(equals(sums.host(), 1, 256, [](int, int c) { return static_cast<float>(20 * c + 190); }));
}

}  // namespace
}  // namespace weft::tile
