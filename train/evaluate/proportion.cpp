#include "train/evaluate/proportion.h"

#include <algorithm>
#include <cmath>

namespace weft {

Interval Proportion::wilson() const {
  if (count == 0) return {};
  constexpr double z = 1.959963984540054;  // the 97.5 % point of the normal distribution
  const auto n = static_cast<double>(count);
  const double p = value();
  const double scale = 1.0 / (1.0 + z * z / n);
  const double centre = scale * (p + z * z / (2.0 * n));
  const double half = scale * z * std::sqrt(p * (1.0 - p) / n + z * z / (4.0 * n * n));
  return {std::max(0.0, centre - half), std::min(1.0, centre + half)};
}

}  // namespace weft
