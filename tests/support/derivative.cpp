#include "tests/support/derivative.h"

#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>

namespace weft::testing {

double inner(const Tensor& a, const Tensor& b) {
  double sum = 0.0;
  for (std::int64_t i = 0; i < a.numel(); ++i) sum += a.data<double>()[i] * b.data<double>()[i];
  return sum;
}

double expect_derivative(const Tensor& x, const Tensor& gradient, const std::function<double()>& loss,
                         const std::string& name, std::int64_t stride) {
  double worst = 0.0, largest = 0.0;
  for (std::int64_t i = 0; i < x.numel(); i += stride) {
    double& value = x.data<double>()[i];
    const double original = value, h = 1e-6 * std::max(1.0, std::abs(original));
    value = original + h;
    const double up = loss();
    value = original - h;
    const double down = loss();
    value = original;
    const double error = std::abs((up - down) / (2.0 * h) - gradient.data<double>()[i]);
    if (!(error <= worst)) worst = error;  // also for NaN
    largest = std::max(largest, std::abs(gradient.data<double>()[i]));
  }
  EXPECT_LE(worst, 1e-6 * largest) << name;
  return largest;
}

}  // namespace weft::testing
