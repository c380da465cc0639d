// How many numbers of a tensor are not finite, and the first of them, found where the tensor is.
#pragma once

#include <cstdint>

#include "autograd/dispatch.h"
#include "autograd/dtype.h"

namespace weft {

// Zero before the count.
struct NonfiniteTally {
  unsigned long long count;
  unsigned long long behind;  // numbers from the first of them to the end: N - its index, 0 if there is none
};

struct NonfiniteCount {
  DType dtype;
  std::int64_t N;
  const void* x;  // [N]
  NonfiniteTally* tally;
};
void count_nonfinite_cuda(const NonfiniteCount& args, const Launch& launch);

}  // namespace weft
