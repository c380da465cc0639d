// Sums over rows on the GPU, in an order that depends on the shape alone; the counterpart of autograd/block_sum.h.
//
// R rows, W width.
#pragma once

#include <cstddef>
#include <cstdint>

#include "autograd/dispatch.h"
#include "autograd/dtype.h"

namespace weft {

// Bytes of Launch::workspace.
std::size_t sum_rows_workspace(std::int64_t R, std::int64_t W);
// target[W] (f32) = (or +=) sum over rows of x[R, W] (f32 or bf16). No rows: zero.
void sum_rows_cuda(DType dtype, const void* x, std::int64_t R, std::int64_t W, float* target, Write write,
                   const Launch& launch);

}  // namespace weft
