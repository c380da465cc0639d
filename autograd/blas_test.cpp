#include "autograd/blas.h"

#include <cmath>
#include <gtest/gtest.h>

#include "tests/support/compare.h"
#include "tests/support/random.h"

namespace weft {
namespace {

// C is not read with beta = 0, and every combination of transposes agrees with the definition.
TEST(Gemm, AllTransposesAndBetas) {
  constexpr std::int64_t m = 5, n = 7, k = 3;
  const Tensor a = testing::normal({m, k}, 1), b = testing::normal({k, n}, 2), c0 = testing::normal({m, n}, 3);
  for (const Op op_a : {Op::none, Op::transpose}) {
    for (const Op op_b : {Op::none, Op::transpose}) {
      for (const double beta : {0.0, 1.0, -0.5}) {
        Tensor stored_a = testing::cast(a, DType::f64), stored_b = testing::cast(b, DType::f64);
        for (std::int64_t i = 0; i < m; ++i) {
          for (std::int64_t p = 0; p < k; ++p) {
            if (op_a == Op::transpose) stored_a.data<double>()[p * m + i] = a.data<double>()[i * k + p];
          }
        }
        for (std::int64_t p = 0; p < k; ++p) {
          for (std::int64_t j = 0; j < n; ++j) {
            if (op_b == Op::transpose) stored_b.data<double>()[j * k + p] = b.data<double>()[p * n + j];
          }
        }
        Tensor c = testing::cast(c0, DType::f64), expected = testing::cast(c0, DType::f64);
        for (std::int64_t i = 0; i < m; ++i) {
          for (std::int64_t j = 0; j < n; ++j) {
            double sum = 0.0;
            for (std::int64_t p = 0; p < k; ++p) sum += a.data<double>()[i * k + p] * b.data<double>()[p * n + j];
            expected.data<double>()[i * n + j] = 2.0 * sum + beta * c0.data<double>()[i * n + j];
            if (beta == 0.0) c.data<double>()[i * n + j] = NAN;
          }
        }
        gemm(op_a, op_b, m, n, k, 2.0, stored_a.data<double>(), op_a == Op::none ? k : m, stored_b.data<double>(),
             op_b == Op::none ? n : k, beta, c.data<double>(), n);
        EXPECT_TRUE(testing::close(c, expected, 1e-14, 1e-14));
      }
    }
  }
}

TEST(Gemm, WithoutTermsIsZeroTimesBeta) {
  double c[4] = {NAN, NAN, NAN, NAN};
  const double unused = 0.0;
  gemm(Op::transpose, Op::none, 2, 2, 0, 1.0, &unused, 2, &unused, 2, 0.0, c, 2);
  for (const double v : c) EXPECT_EQ(v, 0.0);
  gemm(Op::none, Op::none, 0, 2, 3, 1.0, &unused, 3, &unused, 2, 0.0, c, 2);
}

TEST(Gemm, CountsItsWork) {
  const Tensor a = testing::normal({64, 64}, 1), c = Tensor::zeros({64, 64}, DType::f64);
  const GemmStats before = gemm_stats();
  gemm(Op::none, Op::none, 64, 64, 64, 1.0, a.data<double>(), 64, a.data<double>(), 64, 0.0, c.data<double>(), 64);
  EXPECT_EQ(gemm_stats().flops - before.flops, 2.0 * 64 * 64 * 64);
  EXPECT_GT(gemm_stats().seconds, before.seconds);
}

}  // namespace
}  // namespace weft
