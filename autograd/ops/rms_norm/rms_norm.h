// RMS normalisation (Zhang & Sennrich, 2019): y = w * x * r, r = (mean(x^2) + eps)^(-1/2) over the last dimension.
//
// R rows, D width of a row, H weight rows (1, or one per head: row i of x uses weight row i mod H).
#pragma once

#include "autograd/tape.h"

namespace weft {

// "Accumulator" is accumulator_dtype(dtype); weights and their gradients are accumulators, too.
struct RmsNormForward {
  DType dtype;
  std::int64_t R, D, H;
  double eps;
  const void* x;         // [R, D]
  const void* residual;  // [R, D] or null: added to x before the norm
  const void* weight;    // [H, D]
  void* sum;             // [R, D] x + residual; null without residual
  void* y;               // [R, D]
  void* rstd;            // [R] accumulator
};

struct RmsNormBackward {
  DType dtype;
  std::int64_t R, D, H;
  const void* x;       // [R, D] what was normalised (the sum, with a residual)
  const void* weight;  // [H, D]
  const void* rstd;    // [R]
  const void* dy;      // [R, D]
  const void* dsum;    // [R, D] or null: gradient that reached the sum itself; added to dx
  void* dx;            // [R, D] or null
  Write write_dx;
  void* dweight;  // [H, D] or null
  Write write_dweight;
};

void rms_norm_forward_cuda(const RmsNormForward& args, const Launch& launch);
void rms_norm_backward_cuda(const RmsNormBackward& args, const Launch& launch);
std::size_t rms_norm_backward_cuda_workspace(const RmsNormBackward& args);

// x [..., D], weight [D] or [H, D] of accumulator type, with H dividing the rows of x. Returns y, shaped as x.
Var rms_norm(Tape& tape, const Var& x, const Var& weight, double eps = 1e-6);

// The same on s = x + residual: returns {s, y}.
std::array<Var, 2> add_rms_norm(Tape& tape, const Var& x, const Var& residual, const Var& weight, double eps = 1e-6);

}  // namespace weft
