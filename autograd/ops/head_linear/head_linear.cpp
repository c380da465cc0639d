#include "autograd/ops/head_linear/head_linear.h"

#include "autograd/ops/head_linear/head_linear_cpu.h"

namespace weft {
namespace {

constexpr Dispatch<HeadLinearForward> kForward{"head_linear forward", [](const HeadLinearForward& args, const Launch&) {
                                                 dispatch_real(args.dtype, "head_linear",
                                                               [&]<class T>() { head_linear_forward_cpu<T>(args); });
                                               }};
constexpr Dispatch<HeadLinearBackward> kBackward{
    "head_linear backward", [](const HeadLinearBackward& args, const Launch&) {
      dispatch_real(args.dtype, "head_linear", [&]<class T>() { head_linear_backward_cpu<T>(args); });
    }};

struct HeadLinearSaved {
  Tensor x, weight;

  void backward(Backward& pass) const {
    const GradTarget dx = pass.target(0), dweight = pass.target(1);
    kBackward({.dtype = x.dtype(),
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
               .write_dweight = dweight.write},
              pass.launch());
  }
};

}  // namespace

Var head_linear(Tape& tape, const Var& x, const Var& weight) {
  WEFT_CHECK(x.shape().rank() == 3 && weight.shape().rank() == 3 && weight.dim(0) == x.dim(1) &&
                 weight.dim(2) == x.dim(2) && weight.dtype() == x.dtype(),
             "head_linear: x {} {}, weight {} {}; expected [T,H,I] and [H,O,I]", x.shape().str(), name_of(x.dtype()),
             weight.shape().str(), name_of(weight.dtype()));
  const Tensor y = tape.empty({x.dim(0), x.dim(1), weight.dim(1)}, x.dtype());
  kForward({.dtype = x.dtype(),
            .T = x.dim(0),
            .H = x.dim(1),
            .I = x.dim(2),
            .O = weight.dim(1),
            .x = x.value.raw(),
            .weight = weight.value.raw(),
            .y = y.raw()},
           tape.launch());
  return tape.record("head_linear", {x, weight}, y, [&] { return HeadLinearSaved{x.value, weight.value}; });
}

}  // namespace weft
