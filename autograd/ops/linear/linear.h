// Linear map: y = x W^T (+ b).
//
// R rows (tokens), I input width, O output width.
#pragma once

#include "autograd/tape.h"

namespace weft {

struct LinearForward {
  DType dtype;
  std::int64_t R, I, O;
  const void* x;        // [R, I]
  const void* weight;   // [O, I]
  const void* bias;     // [O] of accumulator_dtype, or null
  void* y;              // [R, O]
  bool rounded = true;  // y has the type of x, else accumulator_dtype
};

// dx = dy W, dweight = dy^T x, dbias = sum over rows of dy. The last two are of accumulator_dtype.
struct LinearBackward {
  DType dtype;
  std::int64_t R, I, O;
  const void* x;       // [R, I]
  const void* weight;  // [O, I]
  const void* dy;      // [R, O]
  void* dx;            // [R, I] or null
  Write write_dx;
  void* dweight;  // [O, I] or null
  Write write_dweight;
  void* dbias;  // [O] or null
  Write write_dbias;
};

void linear_forward_cuda(const LinearForward& args, const Launch& launch);
std::size_t linear_forward_cuda_workspace(const LinearForward& args);
void linear_backward_cuda(const LinearBackward& args, const Launch& launch);
std::size_t linear_backward_cuda_workspace(const LinearBackward& args);

// x [..., I], weight [O, I], bias [O] of accumulator_dtype(x). Returns y [..., O].
Var linear(Tape& tape, const Var& x, const Var& weight);
Var linear(Tape& tape, const Var& x, const Var& weight, const Var& bias);
// y of accumulator_dtype(x), for logits of gates and rates: a bias that is large beside what the row adds to it would
// take the bits of that, and be rounded itself, in the same direction for every row. Backward rounds dy.
Var linear_unrounded(Tape& tape, const Var& x, const Var& weight, const Var& bias);
// The same without bias. Nothing is recorded.
Tensor linear_unrounded(Tape& tape, const Tensor& x, const Tensor& weight);

}  // namespace weft
