// Learning-rate schedules: pure functions of the step, in fp64.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace weft {

enum class ScheduleLaw : std::uint8_t { wsd, cosine, linear, constant, inv_sqrt, piecewise };

struct SchedulePoint {
  std::int64_t step = 0;
  double factor = 1.0;
};

// Symbols: w = warmup_steps, n = steps, f = final_fraction.
struct LearningRateSchedule {
  ScheduleLaw law = ScheduleLaw::constant;
  std::int64_t steps = 0;
  std::int64_t warmup_steps = 0;
  double decay_fraction = 0.2;             // wsd: the last floor(decay_fraction n) steps cool down
  double final_fraction = 0.0;             // the factor that step n would have
  std::vector<SchedulePoint> points = {};  // piecewise: increasing steps

  // First step of wsd's cooldown, n - floor(decay_fraction n).
  std::int64_t decay_start() const;

  // The rate of a step over the peak rate. Warm-up is (step + 1) / w for step < w; then
  //   wsd        1, and from decay_start on f + (1 - f)(1 - sqrt(x))     (Haegele et al., arXiv 2405.18392)
  //   cosine     f + (1 - f)(1 + cos(pi x)) / 2
  //   linear     1 - (1 - f) x
  //   inv_sqrt   sqrt(max(w, 1) / (step + 1))
  //   piecewise  straight lines between the points, constant outside them
  // with x the part of the decay that has passed. Steps from n on keep the last value of the decay.
  double factor(std::int64_t step) const;
};

}  // namespace weft
