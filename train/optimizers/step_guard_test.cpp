#include "train/optimizers/step_guard.h"

#include <cmath>
#include <gtest/gtest.h>
#include <limits>

#include "autograd/check.h"

namespace weft {
namespace {

// Loss and norm of an ordinary step: 2 +- 0.1 and 1 +- 0.1.
double ordinary(std::int64_t step) {
  return 0.1 * std::sin(static_cast<double>(step) * 1.7);
}

void warm_up(SpikeGuard& guard, std::int64_t steps) {
  for (std::int64_t s = 0; s < steps; ++s) {
    EXPECT_FALSE(guard.judge(s, 2.0 + ordinary(s), 1.0 + ordinary(s)).skip);
  }
}

TEST(SpikeGuard, NeedsSixtyFourValues) {
  SpikeGuard guard;
  warm_up(guard, 63);
  EXPECT_FALSE(guard.judge(63, 50.0, 1.0).skip);
  SpikeGuard ready;
  warm_up(ready, 64);
  EXPECT_TRUE(ready.judge(64, 50.0, 1.0).skip);
}

TEST(SpikeGuard, SkipsSpikesOfLossOrNormAndForgetsThem) {
  SpikeGuard guard;
  warm_up(guard, 200);
  const std::size_t window = guard.state().losses.size();
  EXPECT_EQ(window, SpikeGuard::kWindow);
  const std::vector<double> before = guard.state().losses;
  const SpikeGuard::Verdict loss = guard.judge(200, 4.0, 1.0);
  EXPECT_TRUE(loss.skip);
  EXPECT_GT(loss.loss_z, 6.0);
  EXPECT_TRUE(guard.judge(201, 2.0, 10.0).skip);
  EXPECT_EQ(guard.state().losses, before);
  EXPECT_FALSE(guard.judge(202, 0.1, 1e-4).skip);  // downwards is no spike
  EXPECT_FALSE(guard.judge(203, 2.05, 1.05).skip);
}

TEST(SpikeGuard, PersistentSpikesTurnItOff) {
  SpikeGuard guard;
  warm_up(guard, 100);
  for (std::int64_t s = 100; s < 105; ++s) EXPECT_TRUE(guard.judge(s, 9.0, 1.0).skip);
  const SpikeGuard::Verdict sixth = guard.judge(105, 9.0, 1.0);
  EXPECT_FALSE(sixth.skip);
  EXPECT_TRUE(sixth.disabled_now);
  EXPECT_FALSE(guard.judge(106, 99.0, 1.0).skip);
  EXPECT_FALSE(guard.judge(106, 99.0, 1.0).disabled_now);
}

TEST(SpikeGuard, RareSpikesDoNot) {
  SpikeGuard guard;
  warm_up(guard, 100);
  for (std::int64_t s = 100; s < 2000; ++s) {
    const bool spike = s % 50 == 0;
    EXPECT_EQ(guard.judge(s, spike ? 9.0 : 2.0 + ordinary(s), 1.0 + ordinary(s)).skip, spike) << s;
  }
}

// A step that is decided elsewhere by the limits is decided as judge() does.
TEST(SpikeGuard, LimitsForetellTheVerdict) {
  SpikeGuard guard;
  EXPECT_EQ(guard.limits(0).loss, std::numeric_limits<double>::infinity());
  warm_up(guard, 100);
  for (std::int64_t s = 100; s < 400; ++s) {
    const SpikeGuard::Limits most = guard.limits(s);
    const double loss = s % 7 == 0 ? 9.0 : 2.0 + ordinary(s);
    const double norm = s % 31 == 0 ? most.norm : s % 33 == 0 ? std::nextafter(most.norm, 1e9) : 1.0;
    EXPECT_EQ(guard.judge(s, loss, std::isfinite(norm) ? norm : 1.0).skip, loss > most.loss || norm > most.norm) << s;
  }
  EXPECT_TRUE(guard.state().disabled);
  EXPECT_EQ(guard.limits(400).norm, std::numeric_limits<double>::infinity());
}

TEST(SpikeGuard, ResumesWithTheSameVerdicts) {
  SpikeGuard through;
  warm_up(through, 150);
  SpikeGuard resumed;
  resumed.restore(through.state());
  for (std::int64_t s = 150; s < 300; ++s) {
    const double loss = 2.0 + ordinary(s) + (s % 40 == 0 ? 0.45 : 0.0);
    const auto a = through.judge(s, loss, 1.0 + ordinary(s));
    const auto b = resumed.judge(s, loss, 1.0 + ordinary(s));
    EXPECT_EQ(a.skip, b.skip);
    EXPECT_EQ(a.loss_z, b.loss_z);
    EXPECT_EQ(a.norm_z, b.norm_z);
  }
}

TEST(SpikeGuard, RefusesDamagedStates) {
  SpikeGuard guard;
  EXPECT_THROW(guard.restore({.losses = {1.0}, .log_norms = {}, .skipped_steps = {}}), Error);
  EXPECT_THROW(
      guard.restore({.losses = {std::numeric_limits<double>::quiet_NaN()}, .log_norms = {0.0}, .skipped_steps = {}}),
      Error);
  EXPECT_THROW(
      guard.restore({.losses = std::vector<double>(500), .log_norms = std::vector<double>(500), .skipped_steps = {}}),
      Error);
}

TEST(NonfinitePolicy, SkipStopsAfterTheLimit) {
  NonfinitePolicy policy(OnNonfinite::skip, 3);
  EXPECT_EQ(policy.decide(true), StepAction::update);
  EXPECT_EQ(policy.decide(false), StepAction::skip);
  EXPECT_EQ(policy.decide(false), StepAction::skip);
  EXPECT_EQ(policy.decide(true), StepAction::update);
  EXPECT_EQ(policy.decide(false), StepAction::skip);
  EXPECT_EQ(policy.decide(false), StepAction::skip);
  EXPECT_EQ(policy.decide(false), StepAction::stop);
  EXPECT_EQ(policy.state().skipped, 4);
}

TEST(NonfinitePolicy, StopAndRollback) {
  NonfinitePolicy stop(OnNonfinite::stop, 3);
  EXPECT_EQ(stop.decide(false), StepAction::stop);

  NonfinitePolicy rollback(OnNonfinite::rollback, 2);
  for (std::int64_t i = 0; i < NonfinitePolicy::kMostRollbacks; ++i) {
    EXPECT_EQ(rollback.decide(false), StepAction::skip);
    EXPECT_EQ(rollback.decide(false), StepAction::rollback);
    EXPECT_EQ(rollback.decide(true), StepAction::update);
  }
  EXPECT_EQ(rollback.decide(false), StepAction::skip);
  EXPECT_EQ(rollback.decide(false), StepAction::stop);
}

}  // namespace
}  // namespace weft
