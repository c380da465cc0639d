#include "autograd/ops/activation/activation.h"

#include "autograd/ops/activation/activation_cpu.h"

namespace weft {
namespace {

constexpr Dispatch<ActivationForward> kForward{"activation forward", [](const ActivationForward& args, const Launch&) {
                                                 dispatch_real(args.dtype, "activation",
                                                               [&]<class T>() { activation_forward_cpu<T>(args); });
                                               }};
constexpr Dispatch<ActivationBackward> kBackward{
    "activation backward", [](const ActivationBackward& args, const Launch&) {
      dispatch_real(args.dtype, "activation", [&]<class T>() { activation_backward_cpu<T>(args); });
    }};

struct ActivationSaved {
  Tensor x;
  ActivationFunction function;
  double scale;

  void backward(Backward& pass) const {
    const GradTarget dx = pass.target(0);
    kBackward({.dtype = x.dtype(),
               .function = function,
               .N = x.numel(),
               .scale = scale,
               .x = x.raw(),
               .dy = pass.grad(0).raw(),
               .dx = dx.raw(),
               .write_dx = dx.write},
              pass.launch());
  }
};

Var activation(Tape& tape, const char* op, ActivationFunction function, const Var& x, double scale) {
  const Tensor y = tape.empty(x.shape(), x.dtype());
  kForward({.dtype = x.dtype(),
            .function = function,
            .N = x.value.numel(),
            .scale = scale,
            .x = x.value.raw(),
            .y = y.raw()},
           tape.launch());
  return tape.record(op, {x}, y, [&] { return ActivationSaved{x.value, function, scale}; });
}

}  // namespace

Var silu(Tape& tape, const Var& x) {
  return activation(tape, "silu", ActivationFunction::silu, x, 1.0);
}

Var sigmoid(Tape& tape, const Var& x) {
  return activation(tape, "sigmoid", ActivationFunction::sigmoid, x, 1.0);
}

Var log_sigmoid(Tape& tape, const Var& x, double scale) {
  return activation(tape, "log_sigmoid", ActivationFunction::log_sigmoid, x, scale);
}

Var softplus(Tape& tape, const Var& x) {
  return activation(tape, "softplus", ActivationFunction::softplus, x, 1.0);
}

}  // namespace weft
