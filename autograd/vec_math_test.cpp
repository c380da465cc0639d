#include "autograd/vec_math.h"

#include <gtest/gtest.h>
#include <limits>

namespace weft {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// Largest error in units of the last place of the float nearest to the exact value, over evenly spaced points.
template <class F, class G>
double worst_ulp(float low, float high, F&& approximate, G&& exact) {
  constexpr int kPoints = 400000;
  double worst = 0.0;
  for (int i = 0; i <= kPoints; ++i) {
    const auto x = static_cast<float>(low + (static_cast<double>(high) - low) * i / kPoints);
    const double expected = exact(static_cast<double>(x));
    const auto rounded = static_cast<float>(std::abs(expected));
    const double ulp = static_cast<double>(std::nextafterf(rounded, kInfinity)) - static_cast<double>(rounded);
    const double error = std::abs(static_cast<double>(approximate(x)) - expected) / ulp;
    if (!(error <= worst)) worst = error;
  }
  return worst;
}

TEST(VecMath, ExpIsWithinTwoUlp) {
  const auto f = [](float x) { return fast_exp(x); };
  const auto g = [](double x) { return std::exp(x); };
  EXPECT_LE(worst_ulp(-87.3f, 88.7f, f, g), 2.0);
  EXPECT_LE(worst_ulp(-1.0f, 1.0f, f, g), 2.0);
  EXPECT_LE(worst_ulp(88.0f, 88.7f, f, g), 2.0);
}

TEST(VecMath, ExpAtTheEnds) {
  EXPECT_EQ(fast_exp(-kInfinity), 0.0f);
  EXPECT_EQ(fast_exp(-88.0f), 0.0f);
  EXPECT_EQ(fast_exp(-std::numeric_limits<float>::max()), 0.0f);
  EXPECT_EQ(fast_exp(kInfinity), kInfinity);
  EXPECT_EQ(fast_exp(89.0f), kInfinity);
  EXPECT_EQ(fast_exp(0.0f), 1.0f);
  EXPECT_EQ(fast_exp(-0.0f), 1.0f);
  EXPECT_TRUE(std::isnan(fast_exp(kNaN)));
  EXPECT_TRUE(std::isnan(fast_exp(-kNaN)));
  EXPECT_EQ(fast_exp(std::numeric_limits<float>::denorm_min()), 1.0f);
}

TEST(VecMath, TanhIsWithinFiveUlpAndOdd) {
  const auto f = [](float x) { return fast_tanh(x); };
  const auto g = [](double x) { return std::tanh(x); };
  EXPECT_LE(worst_ulp(-12.0f, 12.0f, f, g), 5.0);
  EXPECT_LE(worst_ulp(-0.4f, 0.4f, f, g), 5.0);
  EXPECT_LE(worst_ulp(-1e-3f, 1e-3f, f, g), 5.0);
  for (const float x : {0.0f, 1e-20f, 0.299f, 0.3f, 5.0f, 100.0f, kInfinity}) EXPECT_EQ(fast_tanh(-x), -fast_tanh(x));
  EXPECT_TRUE(std::signbit(fast_tanh(-0.0f)));
  EXPECT_EQ(fast_tanh(100.0f), 1.0f);
  EXPECT_EQ(fast_tanh(kInfinity), 1.0f);
  EXPECT_TRUE(std::isnan(fast_tanh(kNaN)));
}

TEST(VecMath, SoftplusIsWithinFourUlp) {
  const auto f = [](float x) { return fast_softplus(x); };
  const auto g = [](double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); };
  EXPECT_LE(worst_ulp(-86.0f, 88.0f, f, g), 4.0);
  EXPECT_LE(worst_ulp(-4.0f, 4.0f, f, g), 4.0);
  EXPECT_EQ(fast_softplus(-kInfinity), 0.0f);
  EXPECT_EQ(fast_softplus(kInfinity), kInfinity);
  EXPECT_EQ(fast_softplus(1000.0f), 1000.0f);
  EXPECT_TRUE(std::isnan(fast_softplus(kNaN)));
}

TEST(VecMath, SigmoidNeitherOverflowsNorLosesNaN) {
  EXPECT_LE(worst_ulp(
                -86.0f, 86.0f, [](float x) { return sigmoid(x); }, [](double x) { return 1.0 / (1.0 + std::exp(-x)); }),
            3.0);
  EXPECT_EQ(sigmoid(0.0f), 0.5f);
  EXPECT_EQ(sigmoid(-kInfinity), 0.0f);
  EXPECT_EQ(sigmoid(kInfinity), 1.0f);
  EXPECT_EQ(sigmoid(-1000.0f), 0.0f);
  EXPECT_TRUE(std::isnan(sigmoid(kNaN)));
}

// A loop over an array, which the compiler vectorises, gives the bits of single calls.
TEST(VecMath, VectorisedLoopsGiveTheSameBits) {
  constexpr int kCount = 1003;
  float x[kCount], y[kCount];
  for (int i = 0; i < kCount; ++i) x[i] = -100.0f + 0.2f * static_cast<float>(i);
  for (int i = 0; i < kCount; ++i) y[i] = fast_exp(x[i]);
  for (int i = 0; i < kCount; ++i) {
    volatile float single = x[i];
    EXPECT_EQ(y[i], fast_exp(single)) << x[i];
  }
}

}  // namespace
}  // namespace weft
