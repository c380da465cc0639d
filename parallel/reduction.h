// The ordered element-wise fold under every reduction on the host.
#pragma once

#include <cstdint>
#include <span>

#include "autograd/dtype.h"
#include "parallel/communicator.h"

namespace weft {

// out[i] = ((x_0[i] op x_1[i]) op x_2[i]) ... for the contributions x_r, each of `elements` elements of `dtype`; the
// order never depends on the size. `out` may be one of the contributions. bf16 is folded in f32 and rounded once;
// integer sums wrap; the maximum or minimum with a NaN is NaN.
void ordered_fold(DType dtype, ReduceOp op, std::span<const void* const> contributions, void* out,
                  std::int64_t elements);

}  // namespace weft
