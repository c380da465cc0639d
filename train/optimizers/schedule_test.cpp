#include "train/optimizers/schedule.h"

#include <cmath>
#include <gtest/gtest.h>

namespace weft {
namespace {

LearningRateSchedule schedule(ScheduleLaw law, double final_fraction = 0.1) {
  return {.law = law, .steps = 1000, .warmup_steps = 100, .final_fraction = final_fraction, .points = {}};
}

constexpr ScheduleLaw kAll[] = {ScheduleLaw::wsd,      ScheduleLaw::cosine,   ScheduleLaw::linear,
                                ScheduleLaw::constant, ScheduleLaw::inv_sqrt, ScheduleLaw::piecewise};

TEST(LearningRateSchedule, WarmUp) {
  for (const ScheduleLaw law : kAll) {
    EXPECT_DOUBLE_EQ(schedule(law).factor(0), 0.01);
    EXPECT_DOUBLE_EQ(schedule(law).factor(49), 0.5);
    EXPECT_DOUBLE_EQ(schedule(law).factor(99), 1.0);
  }
}

TEST(LearningRateSchedule, GoldenValues) {
  struct Golden {
    ScheduleLaw law;
    std::int64_t step;
    double factor;
  };
  const Golden goldens[] = {
      {ScheduleLaw::wsd, 100, 1.0},
      {ScheduleLaw::wsd, 799, 1.0},
      {ScheduleLaw::wsd, 800, 1.0},
      {ScheduleLaw::wsd, 850, 0.1 + 0.9 * 0.5},  // a quarter of the cooldown
      {ScheduleLaw::wsd, 999, 0.1 + 0.9 * (1 - std::sqrt(0.995))},
      {ScheduleLaw::cosine, 100, 1.0},
      {ScheduleLaw::cosine, 400, 0.1 + 0.9 * 0.75},  // a third: cos = 1/2
      {ScheduleLaw::cosine, 550, 0.55},
      {ScheduleLaw::linear, 100, 1.0},
      {ScheduleLaw::linear, 550, 0.55},
      {ScheduleLaw::linear, 999, 1 - 0.9 * 899.0 / 900},
      {ScheduleLaw::constant, 999, 1.0},
      {ScheduleLaw::inv_sqrt, 399, 0.5},
      {ScheduleLaw::inv_sqrt, 899, 1.0 / 3},
  };
  for (const Golden& golden : goldens) {
    EXPECT_NEAR(schedule(golden.law).factor(golden.step), golden.factor, 1e-15)
        << static_cast<int>(golden.law) << " at " << golden.step;
  }
}

TEST(LearningRateSchedule, NoStepJumps) {
  for (const ScheduleLaw law : kAll) {
    const LearningRateSchedule s = schedule(law, 0.0);
    // wsd's cooldown begins with the steep end of a square root.
    const double most = law == ScheduleLaw::wsd ? 0.0708 : 0.0101;
    for (std::int64_t step = 1; step < 1000; ++step) {
      EXPECT_LE(std::abs(s.factor(step) - s.factor(step - 1)), most) << static_cast<int>(law) << " at " << step;
    }
  }
}

TEST(LearningRateSchedule, EndAndBeyond) {
  EXPECT_EQ(schedule(ScheduleLaw::wsd, 0.0).factor(1000), 0.0);
  EXPECT_EQ(schedule(ScheduleLaw::wsd, 0.0).factor(5000), 0.0);
  EXPECT_DOUBLE_EQ(schedule(ScheduleLaw::cosine).factor(1 << 30), 0.1);
  EXPECT_DOUBLE_EQ(schedule(ScheduleLaw::linear).factor(1 << 30), 0.1);
}

TEST(LearningRateSchedule, ExtendingKeepsThePast) {
  const LearningRateSchedule before = schedule(ScheduleLaw::wsd);
  LearningRateSchedule after = before;
  after.steps = 3000;
  EXPECT_EQ(before.decay_start(), 800);
  EXPECT_EQ(after.decay_start(), 2400);
  for (std::int64_t step = 0; step <= 800; ++step) EXPECT_EQ(before.factor(step), after.factor(step));
  EXPECT_NE(before.factor(801), after.factor(801));
}

TEST(LearningRateSchedule, Piecewise) {
  LearningRateSchedule s{.law = ScheduleLaw::piecewise, .steps = 100, .points = {{10, 1.0}, {30, 0.5}, {50, 0.5}}};
  EXPECT_EQ(s.factor(0), 1.0);
  EXPECT_EQ(s.factor(10), 1.0);
  EXPECT_EQ(s.factor(20), 0.75);
  EXPECT_EQ(s.factor(30), 0.5);
  EXPECT_EQ(s.factor(99), 0.5);
}

TEST(LearningRateSchedule, DegenerateRuns) {
  for (const ScheduleLaw law : kAll) {
    for (const std::int64_t steps : {1, 2, 3}) {
      const LearningRateSchedule s{.law = law, .steps = steps, .decay_fraction = 1.0, .points = {}};
      for (std::int64_t step = 0; step <= steps; ++step) EXPECT_TRUE(std::isfinite(s.factor(step)));
    }
  }
}

}  // namespace
}  // namespace weft
