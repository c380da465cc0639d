// How far apart two tensors are, by the metrics that gate every numerical check, and the tolerances of each path.
#pragma once

#include "autograd/tensor.h"

namespace weft {

// rel_f = |x - y|_F / |y|_F; rel_max = max|x - y| / max|y|. NaN anywhere gives infinity. Both 0 for empty tensors.
struct Distance {
  double rel_f = 0.0;
  double rel_max = 0.0;
};
// Of host tensors of any floating types.
Distance distance(const Tensor& x, const Tensor& reference);

// Tolerances of one path (forward and backward rel_F, rel_max of both).
struct Tolerance {
  double forward, backward, max;
};
inline constexpr Tolerance kFp64Chunked{1e-12, 1e-11, 1e-10};
inline constexpr Tolerance kFp32{2e-6, 1e-5, 1e-4};
inline constexpr Tolerance kBf16{4e-3, 8e-3, 2e-2};
inline constexpr Tolerance kBf16Recurrence{8e-3, 1.5e-2, 4e-2};
inline constexpr Tolerance kBf16TestTimeTraining{1.5e-2, 3e-2, 8e-2};
inline constexpr Tolerance kBf16TokenSums{0.0, 1e-2, 3e-2};  // gradients that are sums over tokens

}  // namespace weft
