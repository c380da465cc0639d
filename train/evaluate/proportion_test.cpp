#include "train/evaluate/proportion.h"

#include <gtest/gtest.h>

namespace weft {
namespace {

// Against values computed from the closed form with 30 digits.
TEST(Proportion, WilsonIntervals) {
  struct Case {
    std::int64_t hits, count;
    double low, high;
  };
  for (const auto& [hits, count, low, high] :
       {Case{0, 10, 0.0, 0.277532799862889}, Case{10, 10, 0.722467200137111, 1.0},
        Case{81, 263, 0.255288520, 0.366209577}}) {
    const Interval interval = Proportion{hits, count}.wilson();
    EXPECT_NEAR(interval.low, low, 1e-7);
    EXPECT_NEAR(interval.high, high, 1e-7);
  }
}

TEST(Proportion, NothingIsKnownWithoutTrials) {
  const Proportion none;
  EXPECT_EQ(none.value(), 0.0);
  EXPECT_EQ(none.wilson().low, 0.0);
  EXPECT_EQ(none.wilson().high, 1.0);
}

}  // namespace
}  // namespace weft
