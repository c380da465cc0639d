// Forget gates bounded below that share their value with the keys (HGRN2, arXiv:2404.07904): from logits z
//   f = gamma + (1 - gamma) sigma(z),   k = 1 - f,   g = ln f.
// k and g are computed from z, not from f, so both keep their relative precision at either end.
//
// N elements, 0 <= gamma < 1. z and k have one type; the decays g are of accumulator type: f32 from bf16 logits.
#pragma once

#include "autograd/tape.h"

namespace weft {

struct ForgetGateForward {
  DType dtype;
  std::int64_t N;
  double gamma;
  const void* z;  // [N]
  void* k;        // [N]
  void* g;        // [N] accumulator
};

// df = dg / f - dk, dz = df (1 - gamma) sigma(z) sigma(-z). Null gradients count as zero.
struct ForgetGateBackward {
  DType dtype;
  std::int64_t N;
  double gamma;
  const void* z;   // [N]
  const void* dk;  // [N] or null
  const void* dg;  // [N] accumulator, or null
  void* dz;        // [N]
  Write write_dz;
};

void forget_gate_forward_cuda(const ForgetGateForward& args, const Launch& launch);
void forget_gate_backward_cuda(const ForgetGateBackward& args, const Launch& launch);

struct ForgetGate {
  Var k, g;  // the shape of z
};
ForgetGate forget_gate(Tape& tape, const Var& z, double gamma);

}  // namespace weft
