// Random host tensors (fp64) for checks and measurements, reproducible from a seed.
#pragma once

#include "autograd/tensor.h"

namespace weft {

Tensor normal(const Shape& shape, std::uint64_t seed, double standard_deviation = 1.0);
Tensor uniform(const Shape& shape, std::uint64_t seed, double low, double high);

}  // namespace weft
