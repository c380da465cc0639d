#include "train/optimizers/step_guard.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "autograd/check.h"

namespace weft {
namespace {

struct Spread {
  double mean;
  double deviation;

  explicit Spread(const std::vector<double>& window) {
    double sum = 0.0;
    for (const double x : window) sum += x;
    mean = sum / static_cast<double>(window.size());
    double squares = 0.0;
    for (const double x : window) squares += (x - mean) * (x - mean);
    deviation = std::sqrt(squares / static_cast<double>(window.size())) + 1e-6;
  }
  // Standard deviations of `value` above the mean.
  double z_score(double value) const { return (value - mean) / deviation; }
  double threshold() const { return mean + SpikeGuard::kThreshold * deviation; }
};

void push(std::vector<double>& window, double value) {
  if (window.size() == SpikeGuard::kWindow) window.erase(window.begin());
  window.push_back(value);
}

}  // namespace

bool SpikeGuard::judges() const {
  return !state_.disabled && state_.losses.size() >= kLeast;
}

SpikeGuard::Limits SpikeGuard::thresholds() const {
  return {Spread(state_.losses).threshold(), std::exp(Spread(state_.log_norms).threshold())};
}

bool SpikeGuard::may_skip(std::int64_t step) const {
  const auto recent =
      std::ranges::count_if(state_.skipped_steps, [&](std::int64_t skipped) { return skipped > step - kSkipWindow; });
  return static_cast<std::size_t>(recent) < kMostSkips;
}

SpikeGuard::Limits SpikeGuard::limits(std::int64_t step) const {
  return judges() && may_skip(step) ? thresholds() : Limits{};
}

SpikeGuard::Verdict SpikeGuard::judge(std::int64_t step, double loss, double gradient_norm) {
  WEFT_CHECK(std::isfinite(loss) && std::isfinite(gradient_norm), "spike guard given loss {} and norm {}", loss,
             gradient_norm);
  const double log_norm = std::log(std::max(gradient_norm, 1e-30));
  Verdict verdict;
  if (judges()) {
    verdict.loss_z = Spread(state_.losses).z_score(loss);
    verdict.norm_z = Spread(state_.log_norms).z_score(log_norm);
    const Limits most = thresholds();
    if (loss > most.loss || gradient_norm > most.norm) {
      if (may_skip(step)) {
        std::erase_if(state_.skipped_steps, [&](std::int64_t skipped) { return skipped <= step - kSkipWindow; });
        state_.skipped_steps.push_back(step);
        verdict.skip = true;
        return verdict;
      }
      // Spikes that persist are a real change of the loss; skipping for ever would freeze training.
      state_.disabled = verdict.disabled_now = true;
    }
  }
  push(state_.losses, loss);
  push(state_.log_norms, log_norm);
  return verdict;
}

void SpikeGuard::restore(State state) {
  const auto finite = [](const std::vector<double>& values) {
    return std::ranges::all_of(values, [](double value) { return std::isfinite(value); });
  };
  if (state.losses.size() > kWindow || state.losses.size() != state.log_norms.size() ||
      state.skipped_steps.size() > kMostSkips || !finite(state.losses) || !finite(state.log_norms)) {
    storage_error("the spike guard's saved window is damaged: {} losses, {} norms, {} skipped steps",
                  state.losses.size(), state.log_norms.size(), state.skipped_steps.size());
  }
  state_ = std::move(state);
}

NonfinitePolicy::NonfinitePolicy(OnNonfinite policy, std::int64_t max_consecutive_bad)
    : policy_(policy), max_consecutive_bad_(max_consecutive_bad) {
  WEFT_CHECK(max_consecutive_bad > 0, "max_consecutive_bad is {}", max_consecutive_bad);
}

StepAction NonfinitePolicy::decide(bool finite) {
  if (finite) {
    state_.consecutive_bad = 0;
    return StepAction::update;
  }
  ++state_.consecutive_bad;
  if (policy_ == OnNonfinite::stop) return StepAction::stop;
  if (state_.consecutive_bad < max_consecutive_bad_) {
    ++state_.skipped;
    return StepAction::skip;
  }
  if (policy_ == OnNonfinite::skip || state_.rollbacks == kMostRollbacks) return StepAction::stop;
  state_.consecutive_bad = 0;
  ++state_.rollbacks;
  return StepAction::rollback;
}

}  // namespace weft
