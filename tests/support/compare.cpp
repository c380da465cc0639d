#include "tests/support/compare.h"

namespace weft::testing {

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
