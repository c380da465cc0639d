#include "autograd/portable_math.h"

#include <cmath>
#include <gtest/gtest.h>
#include <numbers>

namespace weft {
namespace {

constexpr int kPoints = 20000;

TEST(PortableMath, LogMatchesTheLibrary) {
  for (int i = 0; i < kPoints; ++i) {
    const double x = std::exp(-700.0 + 1400.0 * i / kPoints);
    const double expected = std::log(x);
    ASSERT_NEAR(portable_log(x), expected, 1e-15 * std::abs(expected) + 2e-16) << x;
  }
  // Around 1, where log is small and its relative error matters.
  for (int i = 1; i <= kPoints; ++i) {
    for (const double x : {1.0 - 0.3 * i / kPoints, 1.0 + 0.3 * i / kPoints}) {
      ASSERT_NEAR(portable_log(x), std::log(x), 1e-15 * std::abs(std::log(x))) << x;
    }
  }
  EXPECT_EQ(portable_log(1.0), 0.0);
  EXPECT_NEAR(portable_log(0x1p-53), -53.0 * std::numbers::ln2, 1e-14);
}

TEST(PortableMath, ExpMatchesTheLibrary) {
  for (int i = 0; i <= kPoints; ++i) {
    const double x = -690.0 + 1380.0 * i / kPoints;
    ASSERT_NEAR(portable_exp(x), std::exp(x), 1e-15 * std::exp(x)) << x;
    const double small = x / 690.0;
    ASSERT_NEAR(portable_exp(small), std::exp(small), 1e-15 * std::exp(small)) << small;
  }
  EXPECT_EQ(portable_exp(0.0), 1.0);
}

TEST(PortableMath, CosMatchesTheLibrary) {
  for (int i = 0; i < kPoints; ++i) {
    const double turns = static_cast<double>(i) / kPoints;
    ASSERT_NEAR(portable_cos_2pi(turns), std::cos(2.0 * std::numbers::pi * turns), 1.5e-15) << turns;
  }
  EXPECT_EQ(portable_cos_2pi(0.0), 1.0);
  EXPECT_EQ(portable_cos_2pi(0.25), 0.0);
  EXPECT_EQ(portable_cos_2pi(0.5), -1.0);
  EXPECT_EQ(portable_cos_2pi(0.75), 0.0);
}

}  // namespace
}  // namespace weft
