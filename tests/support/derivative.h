// Hand-written gradients against central differences, for oracles that are no operations on the tape.
#pragma once

#include <functional>
#include <string>

#include "autograd/tensor.h"

namespace weft::testing {

// Sum of the products of elements, fp64.
double inner(const Tensor& a, const Tensor& b);

// Expects `gradient` to be the derivative of loss() with respect to x (fp64, moved in place and put back), every
// stride-th element, to 1e-6 of the largest entry of the gradient. Returns that entry.
double expect_derivative(const Tensor& x, const Tensor& gradient, const std::function<double()>& loss,
                         const std::string& name, std::int64_t stride = 1);

}  // namespace weft::testing
