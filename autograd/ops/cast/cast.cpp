#include "autograd/ops/cast/cast.h"

#include "autograd/ops/cast/cast_cpu.h"

namespace weft {
namespace {

constexpr Dispatch<Cast> kCast{.op = "cast",
                               .cpu =
                                   [](const Cast& args, const Launch&) {
                                     dispatch_floating(args.from, "cast", [&]<class From>() {
                                       dispatch_floating(args.to, "cast",
                                                         [&]<class To>() { cast_cpu<To, From>(args); });
                                     });
                                   },
                               .cuda = WEFT_ON_CUDA(cast_cuda)};

struct CastSaved {
  DType from;

  void backward(Backward& pass) const {
    const Tensor dy = pass.grad(0);
    const GradTarget dx = pass.target(0);
    kCast.run(pass,
              {.from = dy.dtype(), .to = from, .N = dy.numel(), .x = dy.raw(), .y = dx.raw(), .write_y = dx.write});
  }
};

}  // namespace

Var cast(Tape& tape, const Var& x, DType dtype) {
  WEFT_CHECK(is_floating(x.dtype()) && is_floating(dtype), "cast: {} to {}", name_of(x.dtype()), name_of(dtype));
  if (x.dtype() == dtype) return x;
  const Tensor y = tape.empty(x.shape(), dtype);
  tape.compute_cheaply({x.value}, {y}, [](const Tape& on, std::span<const Tensor> in, std::span<const Tensor> out) {
    kCast.run(on, {.from = in[0].dtype(),
                   .to = out[0].dtype(),
                   .N = in[0].numel(),
                   .x = in[0].raw(),
                   .y = out[0].raw(),
                   .write_y = Write::overwrite});
  });
  return tape.record("cast", {x}, y, [&] { return CastSaved{x.dtype()}; });
}

}  // namespace weft
