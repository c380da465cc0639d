#include "autograd/tile/async_copy.cuh"
#include "autograd/tile/mma.cuh"
#include "autograd/tile/tile_case.cuh"

namespace weft::tile {
namespace {

constexpr int kLd = 72;  // 64 columns and 8 of padding

// [64, 64] -> shared, rows kLd apart, through cp.async; rows from `valid` on are zero.
__device__ void stage(bf16 (&to)[64 * kLd], const bf16* from, int valid) {
  for (int i = threadIdx.x; i < 64 * 8; i += kWarp) {
    const int row = i / 8, column = i % 8 * 8;
    copy16_async(&to[row * kLd + column], from + row * 64 + column, row < valid);
  }
  commit_copies();
}

// out[0] = a b, out[1] = aT b, out[2] = a bT, each [16, 16] over 64 or 16; a and b [64, 64], rows < valid.
__global__ void products(const bf16* a_in, const bf16* b_in, float* out, int valid) {
  __shared__ alignas(16) bf16 a[64 * kLd], b[64 * kLd];
  stage(a, a_in, valid);
  stage(b, b_in, 64);
  wait_copies<0>();
  __syncwarp();
  const SharedMatrix A(a, kLd), B(b, kLd);
  for (int kind = 0; kind < 3; ++kind) {
    FragmentC c[2] = {};
    for (int k = 0; k < 64; k += 16) {
      const FragmentA left = kind == 1 ? load_a_transposed(A, k, 16) : load_a(A, 16, k);
      FragmentB right[2];
      if (kind == 2) {
        load_b_transposed(right, B, 16, k);
      } else {
        load_b(right, B, k, 16);
      }
      mma(c[0], left, right[0]);
      mma(c[1], left, right[1]);
    }
    const int g = threadIdx.x / 4, t = threadIdx.x % 4;
    for (int n = 0; n < 2; ++n) {
      for (int i = 0; i < 4; ++i) out[kind * 256 + (g + i / 2 * 8) * 16 + n * 8 + t * 2 + i % 2] = c[n].x[i];
    }
  }
}

TEST_F(TileGpu, MmaOfEveryOrientation) {
  const int valid = 41;
  const HostMatrix a(64, 64, 1), b(64, 64, 2);
  const DeviceArray<bf16> a_in(a.x), b_in(b.x);
  const DeviceArray<float> out(768);
  products<<<1, 32>>>(a_in.get(), b_in.get(), out.get(), valid);
  WEFT_CHECK_LAUNCH();
  const auto all = out.host();
  const auto A = [&](int r, int c) { return r < valid ? a.at(r, c) : 0.0f; };
  for (int kind = 0; kind < 3; ++kind) {
    const std::vector<float> got(all.begin() + kind * 256, all.begin() + (kind + 1) * 256);
    EXPECT_TRUE(equals(got, 16, 16,
                       [&](int r, int c) {
                         float sum = 0;
                         for (int k = 0; k < 64; ++k) {
                           sum += (kind == 1 ? A(k, 16 + r) : A(16 + r, k)) *
                                  (kind == 2 ? b.at(16 + c, k) : b.at(k, 16 + c));
                         }
                         return sum;
                       }))
        << "kind " << kind;
  }
}

// c of one product as the left operand of the next: (a b) b.
__global__ void chained(const bf16* a_in, const bf16* b_in, float* out) {
  __shared__ alignas(16) bf16 a[64 * kLd], b[64 * kLd];
  stage(a, a_in, 64);
  stage(b, b_in, 64);
  wait_copies<0>();
  __syncwarp();
  const SharedMatrix A(a, kLd), B(b, kLd);
  FragmentC c[2] = {}, d[2] = {};
  FragmentB right[2];
  load_b(right, B, 0, 0);
  const FragmentA left = load_a(A, 0, 0);
  mma(c[0], left, right[0]);
  mma(c[1], left, right[1]);
  const FragmentA next = as_operand(c[0], c[1]);
  mma(d[0], next, right[0]);
  mma(d[1], next, right[1]);
  for (int n = 0; n < 2; ++n) {
    for (int i = 0; i < 4; ++i) {
      out[(threadIdx.x / 4 + i / 2 * 8) * 16 + n * 8 + threadIdx.x % 4 * 2 + i % 2] = d[n].x[i];
    }
  }
}

TEST_F(TileGpu, MmaChained) {
  const HostMatrix a(64, 64, 3), b(64, 64, 4);
  const DeviceArray<bf16> a_in(a.x), b_in(b.x);
  const DeviceArray<float> out(256);
  chained<<<1, 32>>>(a_in.get(), b_in.get(), out.get());
  WEFT_CHECK_LAUNCH();
  EXPECT_TRUE(equals(out.host(), 16, 16, [&](int r, int c) {
    float sum = 0;  // |a b| <= 144 < 256: exact in bf16
    for (int j = 0; j < 16; ++j) {
      float inner = 0;
      for (int k = 0; k < 16; ++k) inner += a.at(r, k) * b.at(k, j);
      sum += inner * b.at(j, c);
    }
    return sum;
  }));
}

}  // namespace
}  // namespace weft::tile
