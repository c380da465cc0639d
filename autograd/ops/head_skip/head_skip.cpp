#include "autograd/ops/head_skip/head_skip.h"

#include "autograd/ops/head_skip/head_skip_cpu.h"

namespace weft {
namespace {

constexpr Dispatch<HeadSkipForward> kForward{.op = "head_skip forward",
                                             .cpu =
                                                 [](const HeadSkipForward& args, const Launch&) {
                                                   dispatch_real(args.dtype, "head_skip",
                                                                 [&]<class T>() { head_skip_forward_cpu<T>(args); });
                                                 },
                                             .cuda = WEFT_ON_CUDA(head_skip_forward_cuda)};
constexpr Dispatch<HeadSkipBackward> kBackward{
    .op = "head_skip backward",
    .cpu =
        [](const HeadSkipBackward& args, const Launch& launch) {
          dispatch_real(args.dtype, "head_skip",
                        [&]<class T>() { head_skip_backward_cpu<T>(args, static_cast<double*>(launch.workspace)); });
        },
    .cuda = WEFT_ON_CUDA(head_skip_backward_cuda),
    .cpu_workspace =
        [](const HeadSkipBackward& args) {
          const std::int64_t lines = row_blocks(args.T, args.H * args.D).count + 1;
          return static_cast<std::size_t>(lines * args.H) * sizeof(double);
        },
    .cuda_workspace = WEFT_ON_CUDA(head_skip_backward_cuda_workspace)};

struct HeadSkipSaved {
  Tensor x, scale;

  void backward(Backward& pass) const {
    const Tensor dy = pass.grad(0);
    const GradTarget dx = pass.target(1), dscale = pass.target(2);
    const HeadSkipBackward args{.dtype = x.dtype(),
                                .T = x.dim(0),
                                .H = x.dim(1),
                                .D = x.dim(2),
                                .x = x.raw(),
                                .scale = scale.raw(),
                                .dy = dy.raw(),
                                .dx = dx.raw(),
                                .write_dx = dx.write,
                                .dscale = dscale.raw(),
                                .write_dscale = dscale.write};
    kBackward.run(pass, args);
    if (pass.wants(0)) pass.pass(0, dy);
  }
};

}  // namespace

Var head_skip(Tape& tape, const Var& o, const Var& x, const Var& scale) {
  WEFT_CHECK(x.shape().rank() == 3 && o.shape() == x.shape() && scale.shape() == Shape{x.dim(1)},
             "head_skip: o {}, x {}, scale {}; expected [T,H,D] twice and [H]", o.shape().str(), x.shape().str(),
             scale.shape().str());
  WEFT_CHECK(o.dtype() == x.dtype() && scale.dtype() == accumulator_dtype(x.dtype()), "head_skip: {} and {} among {}",
             name_of(o.dtype()), name_of(scale.dtype()), name_of(x.dtype()));
  const Tensor y = tape.empty(x.shape(), x.dtype());
  tape.compute_cheaply({o.value, x.value, scale.value}, {y},
                       [](const Tape& on, std::span<const Tensor> in, std::span<const Tensor> out) {
                         kForward.run(on, {.dtype = in[1].dtype(),
                                           .T = out[0].dim(0),
                                           .H = out[0].dim(1),
                                           .D = out[0].dim(2),
                                           .o = in[0].raw(),
                                           .x = in[1].raw(),
                                           .scale = in[2].raw(),
                                           .y = out[0].raw()});
                       });
  return tape.record("head_skip", {o, x, scale}, y, [&] { return HeadSkipSaved{x.value, scale.value}; });
}

}  // namespace weft
