// What a test expects of the distance between two tensors.
#pragma once

#include <gtest/gtest.h>

#include "autograd/distance.h"

namespace weft::testing {

using weft::Distance;
using weft::distance;
using weft::kBf16;
using weft::kBf16Recurrence;
using weft::kBf16TestTimeTraining;
using weft::kBf16TokenSums;
using weft::kFp32;
using weft::kFp64Chunked;
using weft::Tolerance;

::testing::AssertionResult close(const Tensor& x, const Tensor& reference, double rel_f, double rel_max);
::testing::AssertionResult bitwise_equal(const Tensor& x, const Tensor& y);

}  // namespace weft::testing
