#include "autograd/ops/forget_gate/forget_gate.h"

#include "autograd/ops/forget_gate/forget_gate_cpu.h"

namespace weft {
namespace {

constexpr Dispatch<ForgetGateForward> kForward{
    .op = "forget_gate forward",
    .cpu =
        [](const ForgetGateForward& args, const Launch&) {
          dispatch_real(args.dtype, "forget_gate", [&]<class T>() { forget_gate_forward_cpu<T>(args); });
        },
    .cuda = WEFT_ON_CUDA(forget_gate_forward_cuda)};
constexpr Dispatch<ForgetGateBackward> kBackward{
    .op = "forget_gate backward",
    .cpu =
        [](const ForgetGateBackward& args, const Launch&) {
          dispatch_real(args.dtype, "forget_gate", [&]<class T>() { forget_gate_backward_cpu<T>(args); });
        },
    .cuda = WEFT_ON_CUDA(forget_gate_backward_cuda)};

struct ForgetGateSaved {
  Tensor z;
  double gamma;

  void backward(Backward& pass) const {
    const Tensor dk = pass.grad(0), dg = pass.grad(1);
    const GradTarget dz = pass.target(0);
    kBackward.run(pass, {.dtype = z.dtype(),
                         .N = z.numel(),
                         .gamma = gamma,
                         .z = z.raw(),
                         .dk = dk.defined() ? dk.raw() : nullptr,
                         .dg = dg.defined() ? dg.raw() : nullptr,
                         .dz = dz.raw(),
                         .write_dz = dz.write});
  }
};

}  // namespace

ForgetGate forget_gate(Tape& tape, const Var& z, double gamma) {
  WEFT_CHECK(gamma >= 0.0 && gamma < 1.0, "forget_gate: lower bound {}, expected 0 <= gamma < 1", gamma);
  const Tensor k = tape.empty(z.shape(), z.dtype()), g = tape.empty(z.shape(), accumulator_dtype(z.dtype()));
  tape.compute_cheaply({z.value}, {k, g},
                       [gamma](const Tape& on, std::span<const Tensor> in, std::span<const Tensor> out) {
                         kForward.run(on, {.dtype = in[0].dtype(),
                                           .N = in[0].numel(),
                                           .gamma = gamma,
                                           .z = in[0].raw(),
                                           .k = out[0].raw(),
                                           .g = out[1].raw()});
                       });
  const auto outputs = tape.record("forget_gate", {z}, std::array{k, g}, [&] {
    return ForgetGateSaved{z.value, gamma};
  });
  return {outputs[0], outputs[1]};
}

}  // namespace weft
