#include "autograd/ops/head_linear/head_linear.h"

#include "autograd/ops/head_linear/head_linear_cpu.h"

namespace weft {
namespace {

constexpr Dispatch<HeadLinearForward> kForward{
    .op = "head_linear forward",
    .cpu =
        [](const HeadLinearForward& args, const Launch&) {
          dispatch_real(args.dtype, "head_linear", [&]<class T>() { head_linear_forward_cpu<T>(args); });
        },
    .cuda = WEFT_ON_CUDA(head_linear_forward_cuda),
    .cuda_workspace = WEFT_ON_CUDA(head_linear_forward_cuda_workspace)};
constexpr Dispatch<HeadLinearBackward> kBackward{
    .op = "head_linear backward",
    .cpu =
        [](const HeadLinearBackward& args, const Launch&) {
          dispatch_real(args.dtype, "head_linear", [&]<class T>() { head_linear_backward_cpu<T>(args); });
        },
    .cuda = WEFT_ON_CUDA(head_linear_backward_cuda),
    .cuda_workspace = WEFT_ON_CUDA(head_linear_backward_cuda_workspace)};

struct HeadLinearSaved {
  Tensor x, weight;

  void backward(Backward& pass) const {
    const GradTarget dx = pass.target(0), dweight = pass.target(1);
    kBackward.run(pass, {.dtype = x.dtype(),
                         .T = x.dim(0),
                         .H = x.dim(1),
                         .I = x.dim(2),
                         .O = weight.dim(1),
                         .x = x.raw(),
                         .weight = weight.raw(),
                         .dy = pass.grad(0).raw(),
                         .dx = dx.raw(),
                         .write_dx = dx.write,
                         .dweight = dweight.raw(),
                         .write_dweight = dweight.write});
  }
};

}  // namespace

Var head_linear(Tape& tape, const Var& x, const Var& weight) {
  WEFT_CHECK(x.shape().rank() == 3 && weight.shape().rank() == 3 && weight.dim(0) == x.dim(1) &&
                 weight.dim(2) == x.dim(2) && weight.dtype() == x.dtype(),
             "head_linear: x {} {}, weight {} {}; expected [T,H,I] and [H,O,I]", x.shape().str(), name_of(x.dtype()),
             weight.shape().str(), name_of(weight.dtype()));
  const Tensor y = tape.empty({x.dim(0), x.dim(1), weight.dim(1)}, x.dtype());
  kForward.run(tape, {.dtype = x.dtype(),
                      .T = x.dim(0),
                      .H = x.dim(1),
                      .I = x.dim(2),
                      .O = weight.dim(1),
                      .x = x.value.raw(),
                      .weight = weight.value.raw(),
                      .y = y.raw()});
  return tape.record("head_linear", {x, weight}, y, [&] { return HeadLinearSaved{x.value, weight.value}; });
}

}  // namespace weft
