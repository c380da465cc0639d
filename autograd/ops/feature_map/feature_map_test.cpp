#include "autograd/ops/feature_map/feature_map.h"

#include <cmath>

#include "tests/support/op_check.h"

namespace weft {
namespace {

using testing::cast;
using testing::normal;
using testing::OpCase;

constexpr FeatureMap kMaps[] = {FeatureMap::taylor, FeatureMap::softmax_pair, FeatureMap::elu_plus_one};

OP_TEST(FeatureMap, GradientsAndPrecision) {
  for (const FeatureMap map : kMaps) {
    for (const Shape& x : {Shape{0, 2, 3}, Shape{1}, Shape{2, 3, 1}, Shape{15, 16}, Shape{65, 2, 7}, Shape{130, 64},
                           Shape{67, 2, 8}, Shape{257, 16}}) {
      check_op(OpCase{.name = fmt::format("map {} x {}", static_cast<int>(map), x.str()),
                      .inputs = {normal(x, 1)},
                      .function = [map](Tape& tape, std::span<const Var> in) {
                        return std::vector{feature_map(tape, map, in[0])};
                      }});
    }
  }
}

Tensor features(FeatureMap map, const Tensor& x) {
  Tape tape(heap_allocator(), Tape::Mode::inference);
  return cast(feature_map(tape, map, Tape::constant(x)).value, DType::f64);
}

// phi(q) . phi(k) = 1 + u + u^2/2 with u = q . k / sqrt(D), which is at least 1/2.
TEST(FeatureMap, TaylorFeaturesAreTheSecondOrderOfTheExponential) {
  for (const std::int64_t D : {1, 2, 16, 31}) {
    const std::int64_t W = feature_width(FeatureMap::taylor, D);
    EXPECT_EQ(W, 1 + D + D * (D + 1) / 2);
    const Tensor q = normal({40, D}, 1, 1.5), k = normal({40, D}, 2, 1.5);
    const Tensor fq = features(FeatureMap::taylor, q), fk = features(FeatureMap::taylor, k);
    for (std::int64_t i = 0; i < 40; ++i) {
      double u = 0.0, product = 0.0;
      for (std::int64_t c = 0; c < D; ++c) u += q.data<double>()[i * D + c] * k.data<double>()[i * D + c];
      u /= std::sqrt(static_cast<double>(D));
      for (std::int64_t c = 0; c < W; ++c) product += fq.data<double>()[i * W + c] * fk.data<double>()[i * W + c];
      EXPECT_NEAR(product, 1.0 + u + u * u / 2.0, 1e-13 * (1.0 + u * u));
      EXPECT_GE(product, 0.5 - 1e-13);
    }
  }
  EXPECT_EQ(feature_width(FeatureMap::taylor, 16), 153);
}

TEST(FeatureMap, SoftmaxPairsSumToOneAndStopAtTheFloor) {
  const Tensor x = Tensor::from({2, 3}, std::vector<double>{0.3, -1.0, 2.0, 900.0, 0.0, 850.0});
  const Tensor y = features(FeatureMap::softmax_pair, x);
  for (int half = 0; half < 4; ++half) {
    double sum = 0.0;
    for (int c = 0; c < 3; ++c) sum += y.data<double>()[3 * half + c];
    EXPECT_NEAR(sum, 1.0, 1e-11);
  }
  EXPECT_NEAR(y.data<double>()[0] / y.data<double>()[1], std::exp(1.3), 1e-13);
  EXPECT_NEAR(y.data<double>()[3] / y.data<double>()[4], std::exp(-1.3), 1e-13);
  EXPECT_EQ(y.data<double>()[7], 1e-12);
  EXPECT_EQ(y.data<double>()[8], 1e-12);

  // Nothing flows through features at the floor.
  Tape tape(heap_allocator(Hygiene::hostile));
  const Var leaf = tape.leaf(x);
  const Var mapped = feature_map(tape, FeatureMap::softmax_pair, leaf);
  const Tensor dy = Tensor::zeros(mapped.shape(), DType::f64);
  dy.data<double>()[7] = dy.data<double>()[8] = 1.0;
  tape.backward(mapped, dy);
  for (const double dx : tape.gradient(leaf).span<double>()) EXPECT_EQ(dx, 0.0);
}

TEST(FeatureMap, EluPlusOneByValue) {
  const Tensor y = features(FeatureMap::elu_plus_one, Tensor::from({4}, std::vector<double>{-1.0, 0.0, 2.5, -800.0}));
  EXPECT_NEAR(y.data<double>()[0], std::exp(-1.0), 1e-15);
  EXPECT_EQ(y.data<double>()[1], 1.0);
  EXPECT_EQ(y.data<double>()[2], 3.5);
  EXPECT_EQ(y.data<double>()[3], 0.0);
}

}  // namespace
}  // namespace weft
