// L2 normalisation of the last dimension: y = x r, r = (sum(x^2) + eps)^(-1/2).
//
// R rows, D width of a row.
#pragma once

#include "autograd/tape.h"

namespace weft {

struct L2NormForward {
  DType dtype;
  std::int64_t R, D;
  double eps;
  const void* x;  // [R, D]
  void* y;        // [R, D]
  void* rnorm;    // [R] accumulator
};

// dx = r (dy - y <y, dy>); exact for any eps, because r is differentiated as a function of sum(x^2) + eps.
struct L2NormBackward {
  DType dtype;
  std::int64_t R, D;
  const void* x;      // [R, D]
  const void* rnorm;  // [R]
  const void* dy;     // [R, D]
  void* dx;           // [R, D]
  Write write_dx;
};

void l2_norm_forward_cuda(const L2NormForward& args, const Launch& launch);
void l2_norm_backward_cuda(const L2NormBackward& args, const Launch& launch);

// x [..., D]. Returns y, shaped as x.
Var l2_norm(Tape& tape, const Var& x, double eps = 1e-6);

}  // namespace weft
