#include "autograd/random_tensor.h"

#include <cmath>
#include <numbers>

#include "autograd/philox.h"

namespace weft {

Tensor normal(const Shape& shape, std::uint64_t seed, double standard_deviation) {
  Tensor t = Tensor::empty(shape, DType::f64);
  double* values = t.data<double>();
  const std::int64_t n = t.numel();
#pragma omp parallel for schedule(static) if (n > 65536)
  for (std::int64_t i = 0; i < n; ++i) {
    RandomWords words(seed, RandomStream::test, static_cast<std::uint64_t>(i));
    const double u = 1.0 - words.uniform();
    values[i] = standard_deviation * std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * words.uniform());
  }
  return t;
}

Tensor uniform(const Shape& shape, std::uint64_t seed, double low, double high) {
  Tensor t = Tensor::empty(shape, DType::f64);
  double* values = t.data<double>();
  for (std::int64_t i = 0; i < t.numel(); ++i) {
    values[i] = low + (high - low) * RandomWords(seed, RandomStream::test, static_cast<std::uint64_t>(i)).uniform();
  }
  return t;
}

}  // namespace weft
