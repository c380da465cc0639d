#include "autograd/distance.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "autograd/transfer.h"

namespace weft {

Distance distance(const Tensor& x, const Tensor& reference) {
  WEFT_CHECK(x.numel() == reference.numel(), "comparing {} with {}", x.shape().str(), reference.shape().str());
  const Tensor a = to_host(x, DType::f64, {});
  const Tensor b = to_host(reference, DType::f64, {});
  double difference = 0.0, norm = 0.0, max_difference = 0.0, max_value = 0.0;
  for (std::int64_t i = 0; i < a.numel(); ++i) {
    const double u = a.data<double>()[i];
    const double v = b.data<double>()[i];
    if (!std::isfinite(u) || !std::isfinite(v)) {
      if (u == v) continue;
      return {std::numeric_limits<double>::infinity(), std::numeric_limits<double>::infinity()};
    }
    difference += (u - v) * (u - v);
    norm += v * v;
    max_difference = std::max(max_difference, std::abs(u - v));
    max_value = std::max(max_value, std::abs(v));
  }
  if (difference == 0.0) return {};
  return {std::sqrt(difference / norm), max_difference / max_value};
}

}  // namespace weft
