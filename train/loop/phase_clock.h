// Where the time of a step goes.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <string_view>

namespace weft {

enum class Phase : std::uint8_t { data, forward, backward, reduce, optimizer, validation, checkpoint, other };
inline constexpr std::array<std::string_view, 8> kPhaseNames = {"data",      "forward",    "backward",   "reduce",
                                                                "optimizer", "validation", "checkpoint", "other"};

// At every instant one phase is running; switching adds the elapsed time to the one before.
class PhaseClock {
 public:
  void enter(Phase phase) {
    const auto now = Clock::now();
    seconds_[static_cast<std::size_t>(phase_)] += std::chrono::duration<double>(now - since_).count();
    since_ = now;
    phase_ = phase;
  }
  // Seconds by phase since the last take(), and starts anew.
  std::array<double, kPhaseNames.size()> take() {
    enter(phase_);
    const auto taken = seconds_;
    seconds_ = {};
    return taken;
  }

 private:
  using Clock = std::chrono::steady_clock;
  std::array<double, kPhaseNames.size()> seconds_{};
  Clock::time_point since_ = Clock::now();
  Phase phase_ = Phase::other;
};

}  // namespace weft
