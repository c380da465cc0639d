// Random test tensors (fp64), reproducible from a seed.
#pragma once

#include "autograd/random_tensor.h"

namespace weft::testing {

using weft::normal;
using weft::uniform;
// Host copy in another floating type.
Tensor cast(const Tensor& tensor, DType dtype);

}  // namespace weft::testing
