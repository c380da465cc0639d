// Random test tensors (fp64), reproducible from a seed.
#pragma once

#include "autograd/tensor.h"

namespace weft::testing {

Tensor normal(const Shape& shape, std::uint64_t seed, double standard_deviation = 1.0);
Tensor uniform(const Shape& shape, std::uint64_t seed, double low, double high);
// Host copy in another floating type.
Tensor cast(const Tensor& tensor, DType dtype);

}  // namespace weft::testing
