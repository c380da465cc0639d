#include "autograd/ops/activation/activation.h"

#include "autograd/ops/activation/activation_cpu.h"

namespace weft {
namespace {

constexpr Dispatch<ActivationForward> kForward{.op = "activation forward",
                                               .cpu =
                                                   [](const ActivationForward& args, const Launch&) {
                                                     dispatch_real(args.dtype, "activation",
                                                                   [&]<class T>() { activation_forward_cpu<T>(args); });
                                                   },
                                               .cuda = WEFT_ON_CUDA(activation_forward_cuda)};
constexpr Dispatch<ActivationBackward> kBackward{
    .op = "activation backward",
    .cpu =
        [](const ActivationBackward& args, const Launch&) {
          dispatch_real(args.dtype, "activation", [&]<class T>() { activation_backward_cpu<T>(args); });
        },
    .cuda = WEFT_ON_CUDA(activation_backward_cuda)};

struct ActivationSaved {
  Tensor x;
  ActivationFunction function;
  double scale;

  void backward(Backward& pass) const {
    const Tensor dy = pass.grad(0);
    const GradTarget dx = pass.target(0);
    kBackward.run(pass, {.dtype = x.dtype(),
                         .result_dtype = dy.dtype(),
                         .function = function,
                         .N = x.numel(),
                         .scale = scale,
                         .x = x.raw(),
                         .dy = dy.raw(),
                         .dx = dx.raw(),
                         .write_dx = dx.write});
  }
};

Var activation(Tape& tape, const char* op, ActivationFunction function, const Var& x, double scale) {
  const DType result = function == ActivationFunction::silu ? x.dtype() : accumulator_dtype(x.dtype());
  const Tensor y = tape.empty(x.shape(), result);
  tape.compute_cheaply({x.value}, {y},
                       [function, scale](const Tape& on, std::span<const Tensor> in, std::span<const Tensor> out) {
                         kForward.run(on, {.dtype = in[0].dtype(),
                                           .result_dtype = out[0].dtype(),
                                           .function = function,
                                           .N = in[0].numel(),
                                           .scale = scale,
                                           .x = in[0].raw(),
                                           .y = out[0].raw()});
                       });
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
