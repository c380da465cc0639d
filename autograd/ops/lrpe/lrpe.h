// Linearised relative position encoding with trained frequencies (LRPE-d; TransNormerLLM, arXiv:2307.14995): channel c
// of head h at position p becomes
//   y = [x cos(p theta_hc), x sin(p theta_hc)],   so that  y_t . y_s = sum_c x_tc x_sc cos((t - s) theta_hc).
//
// T tokens, H heads, D head width. Angles are formed in fp64 from the rounded theta: a product in fp32 would be wrong
// by 4e-3 at 64k tokens.
#pragma once

#include "autograd/documents.h"
#include "autograd/tape.h"

namespace weft {

// What forward and backward share.
struct LrpeProblem {
  DType dtype;
  std::int64_t T, H, D;
  const std::int32_t* positions;  // [T]
  const void* x;                  // [T, H, D]
  const void* theta;              // [H, D] accumulator
};

struct LrpeForward : LrpeProblem {
  void* y = nullptr;  // [T, H, 2D]: all cosines of a head, then its sines
};

// dx = cos dy_cos + sin dy_sin, dtheta = sum_t p x (cos dy_sin - sin dy_cos). A null gradient is not wanted.
struct LrpeBackward : LrpeProblem {
  const void* dy = nullptr;  // [T, H, 2D]
  void* dx = nullptr;
  Write write_dx = Write::overwrite;
  void* dtheta = nullptr;
  Write write_dtheta = Write::overwrite;
};

void lrpe_forward_cuda(const LrpeForward& args, const Launch& launch);
void lrpe_backward_cuda(const LrpeBackward& args, const Launch& launch);
std::size_t lrpe_backward_cuda_workspace(const LrpeBackward& args);

// x [T, H, D], theta [H, D] of accumulator type (radians per token) -> [T, H, 2D]; positions restart with each document
// and include its pos0.
Var lrpe(Tape& tape, const Var& x, const Var& theta, const DocumentsPtr& documents);

}  // namespace weft
