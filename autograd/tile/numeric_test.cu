#include <cmath>

#include "autograd/tile/reduce.cuh"
#include "autograd/tile/tile_case.cuh"

namespace weft::tile {
namespace {

__global__ void numbers(const float* x, float* exp2s, float* log2s, float* tanhs, float* low, float* high, int n) {
  const int i = threadIdx.x;
  if (i >= n) return;
  exp2s[i] = exp2_fast(x[i]);
  log2s[i] = log2_fast(fabsf(x[i]));
  tanhs[i] = tanh_fast(x[i]);
  const float2 both = unpack(pack(x[i], -x[i]));
  low[i] = both.x;
  high[i] = both.y;
}

TEST_F(TileGpu, Numbers) {
  std::vector<float> x;
  for (int i = 0; i < 200; ++i) x.push_back(static_cast<float>(i - 100) * 0.13f + 0.01f);
  x.push_back(-INFINITY);
  const int n = static_cast<int>(x.size());
  const DeviceArray<float> in(x), exp2s(x.size()), log2s(x.size()), tanhs(x.size()), low(x.size()), high(x.size());
  numbers<<<1, 256>>>(in.get(), exp2s.get(), log2s.get(), tanhs.get(), low.get(), high.get(), n);
  WEFT_CHECK_LAUNCH();
  const auto e = exp2s.host(), l = log2s.host(), t = tanhs.host(), lo = low.host(), hi = high.host();
  for (std::size_t i = 0; i < x.size(); ++i) {
    EXPECT_NEAR(e[i], std::exp2(x[i]), 1e-6 * std::exp2(x[i])) << x[i];
    EXPECT_NEAR(t[i], std::tanh(x[i]), 3e-7) << x[i];
    const float rounded = __bfloat162float(__float2bfloat16(x[i]));
    EXPECT_EQ(lo[i], rounded);
    EXPECT_EQ(hi[i], -rounded);
    if (std::isfinite(x[i])) EXPECT_NEAR(l[i], std::log2(std::abs(x[i])), 1e-5) << x[i];
  }
}

__global__ void vectors(const bf16* from, bf16* to, int count) {
  // Thread i moves elements [8i, 8i + 8), as far as there are any; the last thread reads nothing.
  const int left = count - static_cast<int>(threadIdx.x) * 8;
  const Vector16<bf16> v =
      left > 0 ? load16_partial(from + threadIdx.x * 8, left, true, 7.0f) : load16_if<bf16>(false, nullptr, 5.0f);
  store16(to + threadIdx.x * 8, v);
}

TEST_F(TileGpu, VectorsHaveInertTails) {
  const HostMatrix m(1, 21, 1);
  const DeviceArray<bf16> from(m.x), to(32);
  vectors<<<1, 4>>>(from.get(), to.get(), 21);
  WEFT_CHECK_LAUNCH();
  const auto got = to.host();
  for (int i = 0; i < 32; ++i) {
    EXPECT_EQ(__bfloat162float(got[static_cast<std::size_t>(i)]), i < 21 ? m.at(0, i) : i < 24 ? 7.0f : 5.0f) << i;
  }
}

__global__ void reductions(const float* x, float* out) {
  __shared__ float scratch[8];
  const float v = x[threadIdx.x];
  out[threadIdx.x] = reduce_lanes<Sum>(v);
  out[256 + threadIdx.x] = reduce_quad<Max>(v);
  out[512 + threadIdx.x] = reduce_block<Sum, 256>(v, scratch);
  out[768 + threadIdx.x] = reduce_block<Max, 256>(v, scratch);
}

TEST_F(TileGpu, Reductions) {
  std::vector<float> x;
  for (int i = 0; i < 256; ++i) x.push_back(static_cast<float>((i * 37) % 101));
  const DeviceArray<float> in(x), out(1024);
  reductions<<<1, 256>>>(in.get(), out.get());
  WEFT_CHECK_LAUNCH();
  const auto got = out.host();
  float total = 0, top = 0;
  for (const float v : x) total += v, top = std::max(top, v);
  for (int i = 0; i < 256; ++i) {
    float sum = 0, quad = 0;
    for (int j = 0; j < 32; ++j) sum += x[static_cast<std::size_t>(i / 32 * 32 + j)];
    for (int j = 0; j < 4; ++j) quad = std::max(quad, x[static_cast<std::size_t>(i / 4 * 4 + j)]);
    EXPECT_EQ(got[static_cast<std::size_t>(i)], sum);
    EXPECT_EQ(got[static_cast<std::size_t>(256 + i)], quad);
    EXPECT_EQ(got[static_cast<std::size_t>(512 + i)], total);
    EXPECT_EQ(got[static_cast<std::size_t>(768 + i)], top);
  }
}

}  // namespace
}  // namespace weft::tile
