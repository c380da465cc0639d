#include "autograd/ops/repeat_heads/repeat_heads.h"

#include "autograd/ops/repeat_heads/repeat_heads_cpu.h"

namespace weft {
namespace {

constexpr Dispatch<RepeatHeadsForward> kForward{
    .op = "repeat_heads forward",
    .cpu =
        [](const RepeatHeadsForward& args, const Launch&) {
          dispatch_real(args.dtype, "repeat_heads", [&]<class T>() { repeat_heads_forward_cpu<T>(args); });
        },
    .cuda = WEFT_ON_CUDA(repeat_heads_forward_cuda)};
constexpr Dispatch<RepeatHeadsBackward> kBackward{
    .op = "repeat_heads backward",
    .cpu =
        [](const RepeatHeadsBackward& args, const Launch&) {
          dispatch_real(args.dtype, "repeat_heads", [&]<class T>() { repeat_heads_backward_cpu<T>(args); });
        },
    .cuda = WEFT_ON_CUDA(repeat_heads_backward_cuda)};

struct RepeatHeadsSaved {
  std::int64_t G;

  void backward(Backward& pass) const {
    const Tensor dy = pass.grad(0);
    const GradTarget dx = pass.target(0);
    kBackward.run(pass, {.dtype = dy.dtype(),
                         .T = dy.dim(0),
                         .G = G,
                         .H = dy.dim(1),
                         .D = dy.dim(2),
                         .dy = dy.raw(),
                         .dx = dx.raw(),
                         .write_dx = dx.write});
  }
};

}  // namespace

Var repeat_heads(Tape& tape, const Var& x, std::int64_t heads) {
  WEFT_CHECK(x.shape().rank() == 3 && x.dim(1) > 0 && heads % x.dim(1) == 0,
             "repeat_heads: x {} for {} heads; expected [T, G, D] with G a divisor of the heads", x.shape().str(),
             heads);
  if (x.dim(1) == heads) return x;
  const Tensor y = tape.empty({x.dim(0), heads, x.dim(2)}, x.dtype());
  tape.compute_cheaply({x.value}, {y},
                       [G = x.dim(1)](const Tape& on, std::span<const Tensor> in, std::span<const Tensor> out) {
                         kForward.run(on, {.dtype = in[0].dtype(),
                                           .T = out[0].dim(0),
                                           .G = G,
                                           .H = out[0].dim(1),
                                           .D = out[0].dim(2),
                                           .x = in[0].raw(),
                                           .y = out[0].raw()});
                       });
  return tape.record("repeat_heads", {x}, y, [&] { return RepeatHeadsSaved{x.dim(1)}; });
}

}  // namespace weft
