#include "autograd/ops/lrpe/lrpe.h"

#include "autograd/ops/lrpe/lrpe_cpu.h"

namespace weft {
namespace {

std::size_t cpu_workspace(const LrpeProblem& args) {
  return dispatch_real(args.dtype, "lrpe", [&]<class T>() { return LrpeScratch<T>(args, nullptr).bytes; });
}

constexpr Dispatch<LrpeForward> kForward{
    .op = "lrpe forward",
    .cpu =
        [](const LrpeForward& args, const Launch& launch) {
          dispatch_real(args.dtype, "lrpe", [&]<class T>() { lrpe_forward_cpu<T>(args, launch.workspace); });
        },
    .cuda = WEFT_ON_CUDA(lrpe_forward_cuda),
    .cpu_workspace = [](const LrpeForward& args) { return cpu_workspace(args); }};
constexpr Dispatch<LrpeBackward> kBackward{
    .op = "lrpe backward",
    .cpu =
        [](const LrpeBackward& args, const Launch& launch) {
          dispatch_real(args.dtype, "lrpe", [&]<class T>() { lrpe_backward_cpu<T>(args, launch.workspace); });
        },
    .cuda = WEFT_ON_CUDA(lrpe_backward_cuda),
    .cpu_workspace = [](const LrpeBackward& args) { return cpu_workspace(args); },
    .cuda_workspace = WEFT_ON_CUDA(lrpe_backward_cuda_workspace)};

struct LrpeSaved {
  Tensor x, theta;
  DocumentsPtr documents;

  LrpeProblem problem(const Stream& stream) const {
    return {.dtype = x.dtype(),
            .T = x.dim(0),
            .H = x.dim(1),
            .D = x.dim(2),
            .positions = documents->positions_on(stream),
            .x = x.raw(),
            .theta = theta.raw()};
  }

  void backward(Backward& pass) const {
    LrpeBackward args{problem(pass.tape().stream())};
    const Tensor dy = pass.grad(0);
    const GradTarget dx = pass.target(0), dtheta = pass.target(1);
    args.dy = dy.raw();
    args.dx = dx.raw();
    args.write_dx = dx.write;
    args.dtheta = dtheta.raw();
    args.write_dtheta = dtheta.write;
    kBackward.run(pass, args);
  }
};

}  // namespace

Var lrpe(Tape& tape, const Var& x, const Var& theta, const DocumentsPtr& documents) {
  WEFT_CHECK(x.shape().rank() == 3 && x.dim(0) == documents->tokens(), "lrpe: x is {}, expected [{}, heads, width]",
             x.shape().str(), documents->tokens());
  WEFT_CHECK((theta.shape() == Shape{x.dim(1), x.dim(2)}) && theta.dtype() == accumulator_dtype(x.dtype()),
             "lrpe: theta {} {} for x {} {}", theta.shape().str(), name_of(theta.dtype()), x.shape().str(),
             name_of(x.dtype()));
  const LrpeSaved saved{x.value, theta.value, documents};
  const Tensor y = tape.empty({x.dim(0), x.dim(1), 2 * x.dim(2)}, x.dtype());
  tape.compute_cheaply({x.value, theta.value}, {y},
                       [documents](const Tape& on, std::span<const Tensor> in, std::span<const Tensor> out) {
                         LrpeForward args{LrpeSaved{in[0], in[1], documents}.problem(on.stream())};
                         args.y = out[0].raw();
                         kForward.run(on, args);
                       });
  return tape.record("lrpe", {x, theta}, y, [&] { return saved; });
}

}  // namespace weft
