// Activations of one argument: silu x sigma(x), sigmoid sigma(x), scaled log-sigmoid s log sigma(x),
// softplus log(1 + e^x).
//
// N elements. The gates and decays that all but silu make are of accumulator type: f32 from bf16.
#pragma once

#include "autograd/tape.h"

namespace weft {

enum class ActivationFunction : std::uint8_t { silu, sigmoid, log_sigmoid, softplus };

struct ActivationForward {
  DType dtype, result_dtype;  // of x and of y
  ActivationFunction function;
  std::int64_t N;
  double scale;   // of log_sigmoid
  const void* x;  // [N]
  void* y;        // [N]
};

struct ActivationBackward {
  DType dtype, result_dtype;
  ActivationFunction function;
  std::int64_t N;
  double scale;
  const void* x;   // [N]
  const void* dy;  // [N]
  void* dx;        // [N]
  Write write_dx;
};

void activation_forward_cuda(const ActivationForward& args, const Launch& launch);
void activation_backward_cuda(const ActivationBackward& args, const Launch& launch);

// Any shape; the result has the shape of x.
Var silu(Tape& tape, const Var& x);
Var sigmoid(Tape& tape, const Var& x);
// y = scale * log(sigma(x)).
Var log_sigmoid(Tape& tape, const Var& x, double scale = 1.0);
Var softplus(Tape& tape, const Var& x);

}  // namespace weft
