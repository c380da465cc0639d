#include "train/optimizers/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace weft {
namespace {

double interpolate(const std::vector<SchedulePoint>& points, std::int64_t step) {
  const auto after = std::ranges::upper_bound(points, step, {}, [](const SchedulePoint& point) { return point.step; });
  if (after == points.begin()) return points.empty() ? 1.0 : points.front().factor;
  const SchedulePoint& left = *(after - 1);
  if (after == points.end()) return left.factor;
  const double x = static_cast<double>(step - left.step) / static_cast<double>(after->step - left.step);
  return left.factor + x * (after->factor - left.factor);
}

// (step - begin) / (end - begin), kept within [0, 1].
double part_passed(std::int64_t step, std::int64_t begin, std::int64_t end) {
  if (step >= end) return 1.0;
  return static_cast<double>(std::max<std::int64_t>(0, step - begin)) / static_cast<double>(end - begin);
}

}  // namespace

std::int64_t LearningRateSchedule::decay_start() const {
  return steps - static_cast<std::int64_t>(std::floor(decay_fraction * static_cast<double>(steps)));
}

double LearningRateSchedule::factor(std::int64_t step) const {
  if (step < warmup_steps) return static_cast<double>(step + 1) / static_cast<double>(warmup_steps);
  const double f = final_fraction;
  switch (law) {
    case ScheduleLaw::constant:
      return 1.0;
    case ScheduleLaw::wsd: {
      const std::int64_t start = decay_start();
      return step < start ? 1.0 : f + (1.0 - f) * (1.0 - std::sqrt(part_passed(step, start, steps)));
    }
    case ScheduleLaw::cosine: {
      const double x = part_passed(step, warmup_steps, steps);
      return f + (1.0 - f) * 0.5 * (1.0 + std::cos(std::numbers::pi * x));
    }
    case ScheduleLaw::linear:
      return 1.0 - (1.0 - f) * part_passed(step, warmup_steps, steps);
    case ScheduleLaw::inv_sqrt:
      return std::sqrt(static_cast<double>(std::max<std::int64_t>(warmup_steps, 1)) / static_cast<double>(step + 1));
    case ScheduleLaw::piecewise:
      return interpolate(points, step);
  }
  return 1.0;
}

}  // namespace weft
