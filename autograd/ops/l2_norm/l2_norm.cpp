#include "autograd/ops/l2_norm/l2_norm.h"

#include "autograd/ops/l2_norm/l2_norm_cpu.h"

namespace weft {
namespace {

constexpr Dispatch<L2NormForward> kForward{.op = "l2_norm forward",
                                           .cpu =
                                               [](const L2NormForward& args, const Launch&) {
                                                 dispatch_real(args.dtype, "l2_norm",
                                                               [&]<class T>() { l2_norm_forward_cpu<T>(args); });
                                               },
                                           .cuda = WEFT_ON_CUDA(l2_norm_forward_cuda)};
constexpr Dispatch<L2NormBackward> kBackward{.op = "l2_norm backward",
                                             .cpu =
                                                 [](const L2NormBackward& args, const Launch&) {
                                                   dispatch_real(args.dtype, "l2_norm",
                                                                 [&]<class T>() { l2_norm_backward_cpu<T>(args); });
                                                 },
                                             .cuda = WEFT_ON_CUDA(l2_norm_backward_cuda)};

struct L2NormSaved {
  Tensor x, rnorm;

  void backward(Backward& pass) const {
    const GradTarget dx = pass.target(0);
    kBackward.run(pass, {.dtype = x.dtype(),
                         .R = x.shape().rows(),
                         .D = x.shape().back(),
                         .x = x.raw(),
                         .rnorm = rnorm.raw(),
                         .dy = pass.grad(0).raw(),
                         .dx = dx.raw(),
                         .write_dx = dx.write});
  }
};

}  // namespace

Var l2_norm(Tape& tape, const Var& x, double eps) {
  WEFT_CHECK(x.shape().rank() >= 1 && x.shape().back() > 0, "l2_norm: x is {}", x.shape().str());
  const std::int64_t R = x.shape().rows();
  const Tensor y = tape.empty(x.shape(), x.dtype());
  const Tensor rnorm = tape.empty({R}, accumulator_dtype(x.dtype()));
  tape.compute_cheaply({x.value}, {y, rnorm},
                       [eps](const Tape& on, std::span<const Tensor> in, std::span<const Tensor> out) {
                         kForward.run(on, {.dtype = in[0].dtype(),
                                           .R = in[0].shape().rows(),
                                           .D = in[0].shape().back(),
                                           .eps = eps,
                                           .x = in[0].raw(),
                                           .y = out[0].raw(),
                                           .rnorm = out[1].raw()});
                       });
  return tape.record("l2_norm", {x}, y, [&] { return L2NormSaved{x.value, rnorm}; });
}

}  // namespace weft
