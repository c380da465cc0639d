// A linear map for each head: y_h = x_h W_h^T.
//
// T tokens, H heads, I input width, O output width of a head.
#pragma once

#include "autograd/tape.h"

namespace weft {

struct HeadLinearForward {
  DType dtype;
  std::int64_t T, H, I, O;
  const void* x;       // [T, H, I]
  const void* weight;  // [H, O, I]
  void* y;             // [T, H, O]
};

// dx_h = dy_h W_h, dW_h = dy_h^T x_h (of accumulator_dtype).
struct HeadLinearBackward {
  DType dtype;
  std::int64_t T, H, I, O;
  const void* x;       // [T, H, I]
  const void* weight;  // [H, O, I]
  const void* dy;      // [T, H, O]
  void* dx;            // [T, H, I] or null
  Write write_dx;
  void* dweight;  // [H, O, I] or null
  Write write_dweight;
};

void head_linear_forward_cuda(const HeadLinearForward& args, const Launch& launch);
std::size_t head_linear_forward_cuda_workspace(const HeadLinearForward& args);
void head_linear_backward_cuda(const HeadLinearBackward& args, const Launch& launch);
std::size_t head_linear_backward_cuda_workspace(const HeadLinearBackward& args);

// x [T, H, I], weight [H, O, I]. Returns y [T, H, O].
Var head_linear(Tape& tape, const Var& x, const Var& weight);

}  // namespace weft
