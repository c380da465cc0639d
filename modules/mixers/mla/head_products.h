// Products of every head's rows with a matrix of its own: what absorbs a head's projections into its queries and its
// output. Inference only.
//
// T tokens, H heads, C width of the matrices' rows.
#pragma once

#include "autograd/blas.h"
#include "autograd/tape.h"

namespace weft {

struct HeadProducts {
  DType dtype;
  std::int64_t T, H, I, O;
  Op op;                       // of the matrices: none [I, O], transpose [O, I]
  const void* x;               // [T, H, I]
  const void* weight;          // the first head's matrix
  std::int64_t weight_stride;  // elements from one head's matrix to the next
  void* y;                     // [T, H, O]
};

void head_products_cuda(const HeadProducts& args, const Launch& launch);
std::size_t head_products_cuda_workspace(const HeadProducts& args);

// weight [H, R, C]; head h's matrix M_h is its rows [first, first + rows).
// Op::none: x [T, H, rows] -> x_h M_h [T, H, C]. Op::transpose: x [T, H, C] -> x_h M_h^T [T, H, rows].
Tensor head_products(Tape& tape, const Tensor& x, const Tensor& weight, std::int64_t first, std::int64_t rows, Op op);

}  // namespace weft
