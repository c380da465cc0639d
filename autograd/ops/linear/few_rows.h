// Products of few rows on CUDA, as decoding makes them: bound by the bytes of the weight, which a plain kernel reads at
// the speed of the memory.
#pragma once

#include "autograd/ops/linear/linear.h"

namespace weft {

inline constexpr std::int64_t kFewRows = 4;

bool few_rows_fit(const LinearForward& args);
void linear_few_rows_cuda(const LinearForward& args, const Launch& launch);

}  // namespace weft
