// RMS normalisation of each head, then rotation to its position: y = rope(rms_norm(x)), in one pass over queries or
// keys. The normalised values between the two are never stored.
//
// T tokens, H heads, D head width.
#pragma once

#include "autograd/ops/rope/rope.h"

namespace weft {

// What forward and backward share.
struct NormRopeProblem {
  DType dtype;
  std::int64_t T, H, D;
  double eps = 1e-6;
  RopeAngles angles;
  const void* x;       // [T, H, D]
  const void* weight;  // [D] accumulator
  void* rstd;          // [T, H] accumulator: what the forward writes and the backward reads
};

struct NormRopeForward : NormRopeProblem {
  void* y = nullptr;  // [T, H, D]
};

// A null gradient is not wanted.
struct NormRopeBackward : NormRopeProblem {
  const void* dy = nullptr;  // [T, H, D]
  void* dx = nullptr;        // [T, H, D]
  Write write_dx = Write::overwrite;
  void* dweight = nullptr;  // [D] accumulator
  Write write_dweight = Write::overwrite;
};

void norm_rope_forward_cuda(const NormRopeForward& args, const Launch& launch);
void norm_rope_backward_cuda(const NormRopeBackward& args, const Launch& launch);
std::size_t norm_rope_backward_cuda_workspace(const NormRopeBackward& args);

// x [T, H, D], weight [D] of accumulator type. One kernel on a GPU for heads of 64, 128 and 256 that are rotated as a
// whole; everywhere else the two operations.
Var norm_rope(Tape& tape, const Var& x, const Var& weight, const DocumentsPtr& documents, const RopeTable& table,
              double eps = 1e-6);

}  // namespace weft
