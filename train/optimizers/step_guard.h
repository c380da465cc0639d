// What to do about a step whose numbers look wrong: the spike guard and the policy for non-finite values. Both are
// functions of reduced numbers, so all ranks decide alike.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace weft {

// Skips single steps whose loss or gradient norm stands out from the last accepted ones.
class SpikeGuard {
 public:
  static constexpr std::size_t kWindow = 128;   // accepted steps remembered
  static constexpr std::size_t kLeast = 64;     // no verdict on fewer
  static constexpr double kThreshold = 6.0;     // standard deviations above the mean
  static constexpr std::size_t kMostSkips = 5;  // within kSkipWindow steps; one more turns the guard off
  static constexpr std::int64_t kSkipWindow = 100;

  // What a checkpoint stores; sums are formed anew from the elements, so a resumed run sees the same bits.
  struct State {
    std::vector<double> losses;  // oldest first
    std::vector<double> log_norms;
    std::vector<std::int64_t> skipped_steps;  // the recent ones
    bool disabled = false;
  };

  struct Verdict {
    bool skip = false;
    bool disabled_now = false;  // this spike was one too many: report it, and skip no more
    double loss_z = 0.0;        // standard deviations above the mean; 0 without a verdict
    double norm_z = 0.0;
  };

  // A step is skipped beyond either of these.
  struct Limits {
    double loss = std::numeric_limits<double>::infinity();
    double norm = std::numeric_limits<double>::infinity();
  };
  // Those that judge() will apply to `step`, for where the decision falls before the host sees the numbers.
  Limits limits(std::int64_t step) const;

  // Judges a step with finite loss and norm; accepted steps enter the window.
  Verdict judge(std::int64_t step, double loss, double gradient_norm);

  const State& state() const { return state_; }
  // Error (storage) if the state cannot have come from a guard.
  void restore(State state);

 private:
  // Whether the steps so far let `step` be judged, and if so its thresholds.
  bool judges() const;
  Limits thresholds() const;
  bool may_skip(std::int64_t step) const;

  State state_;
};

enum class OnNonfinite : std::uint8_t { skip, stop, rollback };
enum class StepAction : std::uint8_t {
  update,    // apply the gradients
  skip,      // leave parameters and states as they are; the step counter and the data go on
  rollback,  // load the newest checkpoint, and go on with the data after this step
  stop       // end the run with exit code 3, keeping the last checkpoint
};

// skip: leave out bad steps; after `max_consecutive_bad` in a row, stop. rollback: the same, but then roll back; the
// fourth time, stop. stop: at the first bad step. The policy lives on through a rollback.
class NonfinitePolicy {
 public:
  static constexpr std::int64_t kMostRollbacks = 3;

  struct State {
    std::int64_t consecutive_bad = 0;
    std::int64_t rollbacks = 0;
    std::int64_t skipped = 0;  // over the whole run
  };

  NonfinitePolicy(OnNonfinite policy, std::int64_t max_consecutive_bad);

  // Call once a step, with whether loss and gradient norm are finite.
  StepAction decide(bool finite);

  const State& state() const { return state_; }
  void restore(const State& state) { state_ = state; }

 private:
  OnNonfinite policy_;
  std::int64_t max_consecutive_bad_;
  State state_;
};

}  // namespace weft
