#include "autograd/ops/lrpe/lrpe.h"

#include "autograd/ops/lrpe/lrpe_cpu.h"

namespace weft {
namespace {

constexpr Dispatch<LrpeForward> kForward{
    "lrpe forward", [](const LrpeForward& args, const Launch& launch) {
      dispatch_real(args.dtype, "lrpe", [&]<class T>() { lrpe_forward_cpu<T>(args, launch.workspace); });
    }};
constexpr Dispatch<LrpeBackward> kBackward{
    "lrpe backward", [](const LrpeBackward& args, const Launch& launch) {
      dispatch_real(args.dtype, "lrpe", [&]<class T>() { lrpe_backward_cpu<T>(args, launch.workspace); });
    }};

struct LrpeSaved {
  Tensor x, theta;
  DocumentsPtr documents;

  LrpeProblem problem() const {
    return {.dtype = x.dtype(),
            .T = x.dim(0),
            .H = x.dim(1),
            .D = x.dim(2),
            .positions = documents->positions().data(),
            .x = x.raw(),
            .theta = theta.raw()};
  }

  void backward(Backward& pass) const {
    LrpeBackward args{problem()};
    const Tensor dy = pass.grad(0);
    const GradTarget dx = pass.target(0), dtheta = pass.target(1);
    args.dy = dy.raw();
    args.dx = dx.raw();
    args.write_dx = dx.write;
    args.dtheta = dtheta.raw();
    args.write_dtheta = dtheta.write;
    kBackward(args, pass.launch(lrpe_workspace(args)));
  }
};

}  // namespace

std::size_t lrpe_workspace(const LrpeProblem& args) {
  return dispatch_real(args.dtype, "lrpe", [&]<class T>() { return LrpeScratch<T>(args, nullptr).bytes; });
}

Var lrpe(Tape& tape, const Var& x, const Var& theta, const DocumentsPtr& documents) {
  WEFT_CHECK(x.shape().rank() == 3 && x.dim(0) == documents->tokens(), "lrpe: x is {}, expected [{}, heads, width]",
             x.shape().str(), documents->tokens());
  WEFT_CHECK((theta.shape() == Shape{x.dim(1), x.dim(2)}) && theta.dtype() == x.dtype(),
             "lrpe: theta {} {} for x {} {}", theta.shape().str(), name_of(theta.dtype()), x.shape().str(),
             name_of(x.dtype()));
  const LrpeSaved saved{x.value, theta.value, documents};
  const Tensor y = tape.empty({x.dim(0), x.dim(1), 2 * x.dim(2)}, x.dtype());
  LrpeForward args{saved.problem()};
  args.y = y.raw();
  kForward(args, tape.launch(lrpe_workspace(args)));
  return tape.record("lrpe", {x, theta}, y, [&] { return saved; });
}

}  // namespace weft
