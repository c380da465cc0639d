#include "autograd/ops/gate/gate.h"

#include "autograd/ops/gate/gate_cpu.h"

namespace weft {
namespace {

constexpr Dispatch<GateForward> kForward{
    .op = "gate forward",
    .cpu = [](const GateForward& args,
              const Launch&) { dispatch_real(args.dtype, "gate", [&]<class T>() { gate_forward_cpu<T>(args); }); },
    .cuda = WEFT_ON_CUDA(gate_forward_cuda)};
constexpr Dispatch<GateBackward> kBackward{
    .op = "gate backward",
    .cpu = [](const GateBackward& args,
              const Launch&) { dispatch_real(args.dtype, "gate", [&]<class T>() { gate_backward_cpu<T>(args); }); },
    .cuda = WEFT_ON_CUDA(gate_backward_cuda)};

struct GateSaved {
  Tensor x, g;
  GateFunction function;
  bool per_row;

  void backward(Backward& pass) const {
    const GradTarget dx = pass.target(0);
    const GradTarget dg = pass.target(1);
    kBackward.run(pass, {.dtype = x.dtype(),
                         .gate_dtype = g.dtype(),
                         .function = function,
                         .per_row = per_row,
                         .R = x.shape().rows(),
                         .D = x.shape().back(),
                         .x = x.raw(),
                         .g = g.raw(),
                         .dy = pass.grad(0).raw(),
                         .dx = dx.raw(),
                         .write_dx = dx.write,
                         .dg = dg.raw(),
                         .write_dg = dg.write});
  }
};

bool is_row_shape(const Shape& g, const Shape& x) {
  return g.rank() + 1 == x.rank() && std::equal(g.begin(), g.end(), x.begin());
}

Var gate(Tape& tape, const char* op, GateFunction function, const Var& x, const Var& g) {
  const bool per_row = is_row_shape(g.shape(), x.shape());
  WEFT_CHECK(x.shape().rank() >= 1 && (per_row || g.shape() == x.shape()) &&
                 (g.dtype() == x.dtype() || g.dtype() == accumulator_dtype(x.dtype())),
             "{}: x {} {} with gate {} {}", op, x.shape().str(), name_of(x.dtype()), g.shape().str(),
             name_of(g.dtype()));
  const Tensor y = tape.empty(x.shape(), x.dtype());
  tape.compute_cheaply({x.value, g.value}, {y},
                       [function, per_row](const Tape& on, std::span<const Tensor> in, std::span<const Tensor> out) {
                         kForward.run(on, {.dtype = in[0].dtype(),
                                           .gate_dtype = in[1].dtype(),
                                           .function = function,
                                           .per_row = per_row,
                                           .R = in[0].shape().rows(),
                                           .D = in[0].shape().back(),
                                           .x = in[0].raw(),
                                           .g = in[1].raw(),
                                           .y = out[0].raw()});
                       });
  return tape.record(op, {x, g}, y, [&] { return GateSaved{x.value, g.value, function, per_row}; });
}

}  // namespace

Var sigmoid_gate(Tape& tape, const Var& x, const Var& g) {
  return gate(tape, "sigmoid_gate", GateFunction::sigmoid, x, g);
}

Var silu_gate(Tape& tape, const Var& x, const Var& g) {
  return gate(tape, "silu_gate", GateFunction::silu, x, g);
}

Var gelu_gate(Tape& tape, const Var& x, const Var& g) {
  return gate(tape, "gelu_gate", GateFunction::gelu, x, g);
}

Var linear_gate(Tape& tape, const Var& x, const Var& g) {
  return gate(tape, "linear_gate", GateFunction::linear, x, g);
}

}  // namespace weft
