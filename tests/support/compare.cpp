#include "tests/support/compare.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "tests/support/random.h"

namespace weft::testing {

Distance distance(const Tensor& x, const Tensor& reference) {
  WEFT_CHECK(x.numel() == reference.numel(), "comparing {} with {}", x.shape().str(), reference.shape().str());
  const Tensor a = cast(x, DType::f64);
  const Tensor b = cast(reference, DType::f64);
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

::testing::AssertionResult close(const Tensor& x, const Tensor& reference, double rel_f, double rel_max) {
  const Distance d = distance(x, reference);
  if (d.rel_f <= rel_f && d.rel_max <= rel_max) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "rel_F " << d.rel_f << " (limit " << rel_f << "), rel_max " << d.rel_max
                                       << " (limit " << rel_max << "), shape " << reference.shape().str();
}

::testing::AssertionResult bitwise_equal(const Tensor& x, const Tensor& y) {
  if (x.dtype() != y.dtype() || x.numel() != y.numel()) {
    return ::testing::AssertionFailure() << x.shape().str() << " against " << y.shape().str();
  }
  const auto* a = static_cast<const unsigned char*>(x.raw());
  const auto* b = static_cast<const unsigned char*>(y.raw());
  for (std::size_t i = 0; i < x.nbytes(); ++i) {
    if (a[i] != b[i]) return ::testing::AssertionFailure() << "first difference in element " << i / size_of(x.dtype());
  }
  return ::testing::AssertionSuccess();
}

}  // namespace weft::testing
