#include "autograd/ops/linear/linear.h"

#include "autograd/ops/linear/linear_cpu.h"
#include "autograd/transfer.h"

namespace weft {
namespace {

constexpr Dispatch<LinearForward> kForward{
    .op = "linear forward",
    .cpu = [](const LinearForward& args,
              const Launch&) { dispatch_real(args.dtype, "linear", [&]<class T>() { linear_forward_cpu<T>(args); }); },
    .cuda = WEFT_ON_CUDA(linear_forward_cuda),
    .cuda_workspace = WEFT_ON_CUDA(linear_forward_cuda_workspace)};
constexpr Dispatch<LinearBackward> kBackward{
    .op = "linear backward",
    .cpu =
        [](const LinearBackward& args, const Launch& launch) {
          dispatch_real(args.dtype, "linear",
                        [&]<class T>() { linear_backward_cpu<T>(args, static_cast<T*>(launch.workspace)); });
        },
    .cuda = WEFT_ON_CUDA(linear_backward_cuda),
    .cpu_workspace =
        [](const LinearBackward& args) {
          if (args.dbias == nullptr) return std::size_t{0};
          return static_cast<std::size_t>(row_blocks(args.R, args.O).count * args.O) * size_of(args.dtype);
        },
    .cuda_workspace = WEFT_ON_CUDA(linear_backward_cuda_workspace)};

struct LinearSaved {
  Tensor x, weight;
  bool has_bias;

  void backward(Backward& pass) const {
    Tensor dy = pass.grad(0);
    if (dy.dtype() != x.dtype()) {
      const Tensor rounded = pass.tape().empty(dy.shape(), x.dtype());
      convert(rounded, dy, pass.tape().stream());
      dy = rounded;
    }
    const GradTarget dx = pass.target(0);
    const GradTarget dweight = pass.target(1);
    const GradTarget dbias = has_bias ? pass.target(2) : GradTarget{};
    kBackward.run(pass, {.dtype = x.dtype(),
                         .R = x.shape().rows(),
                         .I = weight.dim(1),
                         .O = weight.dim(0),
                         .x = x.raw(),
                         .weight = weight.raw(),
                         .dy = dy.raw(),
                         .dx = dx.raw(),
                         .write_dx = dx.write,
                         .dweight = dweight.raw(),
                         .write_dweight = dweight.write,
                         .dbias = dbias.raw(),
                         .write_dbias = dbias.write});
  }
};

Tensor forward(Tape& tape, const Var& x, const Var& weight, const Tensor& bias, bool rounded = true) {
  WEFT_CHECK(x.shape().rank() >= 1 && weight.shape().rank() == 2 && x.shape().back() == weight.dim(1) &&
                 x.shape().back() > 0 && weight.dtype() == x.dtype(),
             "linear: x {} {} with weight {} {}", x.shape().str(), name_of(x.dtype()), weight.shape().str(),
             name_of(weight.dtype()));
  const std::int64_t O = weight.dim(0);
  WEFT_CHECK(!bias.defined() || (bias.shape() == Shape{O} && bias.dtype() == accumulator_dtype(x.dtype())),
             "linear: bias {} {} with weight {} {}", bias.shape().str(), name_of(bias.dtype()), weight.shape().str(),
             name_of(weight.dtype()));
  Shape shape = x.shape();
  shape.set(shape.rank() - 1, O);
  const Tensor y = tape.empty(shape, rounded ? x.dtype() : accumulator_dtype(x.dtype()));
  kForward.run(tape, {.dtype = x.dtype(),
                      .R = x.shape().rows(),
                      .I = weight.dim(1),
                      .O = O,
                      .x = x.value.raw(),
                      .weight = weight.value.raw(),
                      .bias = bias.defined() ? bias.raw() : nullptr,
                      .y = y.raw(),
                      .rounded = rounded});
  return y;
}

}  // namespace

Var linear(Tape& tape, const Var& x, const Var& weight) {
  return tape.record("linear", {x, weight}, forward(tape, x, weight, {}), [&] {
    return LinearSaved{x.value, weight.value, false};
  });
}

Var linear(Tape& tape, const Var& x, const Var& weight, const Var& bias) {
  return tape.record("linear", {x, weight, bias}, forward(tape, x, weight, bias.value), [&] {
    return LinearSaved{x.value, weight.value, true};
  });
}

Var linear_unrounded(Tape& tape, const Var& x, const Var& weight, const Var& bias) {
  return tape.record("linear", {x, weight, bias}, forward(tape, x, weight, bias.value, false), [&] {
    return LinearSaved{x.value, weight.value, true};
  });
}

Tensor linear_unrounded(Tape& tape, const Tensor& x, const Tensor& weight) {
  WEFT_CHECK(!tape.recording(), "linear_unrounded on a recording tape");
  return forward(tape, Tape::constant(x), Tape::constant(weight), {}, false);
}

}  // namespace weft
