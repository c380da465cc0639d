#include "autograd/ops/repeat_heads/repeat_heads.h"

#include "autograd/ops/repeat_heads/repeat_heads_cpu.h"

namespace weft {
namespace {

constexpr Dispatch<RepeatHeadsForward> kForward{
    "repeat_heads forward", [](const RepeatHeadsForward& args, const Launch&) {
      dispatch_real(args.dtype, "repeat_heads", [&]<class T>() { repeat_heads_forward_cpu<T>(args); });
    }};
constexpr Dispatch<RepeatHeadsBackward> kBackward{
    "repeat_heads backward", [](const RepeatHeadsBackward& args, const Launch&) {
      dispatch_real(args.dtype, "repeat_heads", [&]<class T>() { repeat_heads_backward_cpu<T>(args); });
    }};

struct RepeatHeadsSaved {
  std::int64_t G;

  void backward(Backward& pass) const {
    const Tensor dy = pass.grad(0);
    const GradTarget dx = pass.target(0);
    kBackward({.dtype = dy.dtype(),
               .T = dy.dim(0),
               .G = G,
               .H = dy.dim(1),
               .D = dy.dim(2),
               .dy = dy.raw(),
               .dx = dx.raw(),
               .write_dx = dx.write},
              pass.launch());
  }
};

}  // namespace

Var repeat_heads(Tape& tape, const Var& x, std::int64_t heads) {
  WEFT_CHECK(x.shape().rank() == 3 && x.dim(1) > 0 && heads % x.dim(1) == 0,
             "repeat_heads: x {} for {} heads; expected [T, G, D] with G a divisor of the heads", x.shape().str(),
             heads);
  if (x.dim(1) == heads) return x;
  const Tensor y = tape.empty({x.dim(0), heads, x.dim(2)}, x.dtype());
  kForward(
      {.dtype = x.dtype(), .T = x.dim(0), .G = x.dim(1), .H = heads, .D = x.dim(2), .x = x.value.raw(), .y = y.raw()},
      tape.launch());
  return tape.record("repeat_heads", {x}, y, [&] { return RepeatHeadsSaved{x.dim(1)}; });
}

}  // namespace weft
