#include "autograd/ops/rms_norm/rms_norm.h"

#include "autograd/ops/rms_norm/rms_norm_cpu.h"

namespace weft {
namespace {

constexpr Dispatch<RmsNormForward> kForward{.op = "rms_norm forward",
                                            .cpu =
                                                [](const RmsNormForward& args, const Launch&) {
                                                  dispatch_real(args.dtype, "rms_norm",
                                                                [&]<class T>() { rms_norm_forward_cpu<T>(args); });
                                                },
                                            .cuda = WEFT_ON_CUDA(rms_norm_forward_cuda)};

constexpr Dispatch<RmsNormBackward> kBackward{
    .op = "rms_norm backward",
    .cpu =
        [](const RmsNormBackward& args, const Launch& launch) {
          dispatch_real(args.dtype, "rms_norm",
                        [&]<class T>() { rms_norm_backward_cpu<T>(args, static_cast<T*>(launch.workspace)); });
        },
    .cuda = WEFT_ON_CUDA(rms_norm_backward_cuda),
    .cpu_workspace =
        [](const RmsNormBackward& args) {
          if (args.dweight == nullptr) return std::size_t{0};
          return static_cast<std::size_t>(row_blocks(args.R, args.D).count * args.H * args.D) * size_of(args.dtype);
        },
    .cuda_workspace = WEFT_ON_CUDA(rms_norm_backward_cuda_workspace)};

struct RmsNormSaved {
  Tensor x, weight, rstd;
  std::int64_t H;
  bool has_residual;

  void backward(Backward& pass) const {
    // Outputs are (sum, y) with a residual, (y) without.
    const Tensor dy = has_residual ? pass.grad_or_zero(1) : pass.grad(0);
    const Tensor dsum = has_residual ? pass.grad(0) : Tensor{};
    const int weight_input = has_residual ? 2 : 1;
    const GradTarget dweight = pass.target(weight_input);
    GradTarget dx;
    if (has_residual) {
      // x and residual receive the same gradient: computed once, passed to both.
      if (pass.wants(0) || pass.wants(1)) dx = {pass.empty(x.shape(), x.dtype()), Write::overwrite};
    } else {
      dx = pass.target(0);
    }
    const std::int64_t D = x.shape().back();
    const RmsNormBackward args{.dtype = x.dtype(),
                               .R = D == 0 ? 0 : x.numel() / D,
                               .D = D,
                               .H = H,
                               .x = x.raw(),
                               .weight = weight.raw(),
                               .rstd = rstd.raw(),
                               .dy = dy.raw(),
                               .dsum = dsum.defined() ? dsum.raw() : nullptr,
                               .dx = dx.raw(),
                               .write_dx = dx.write,
                               .dweight = dweight.raw(),
                               .write_dweight = dweight.write};
    kBackward.run(pass, args);
    if (has_residual && dx.wanted()) {
      pass.pass(0, dx.tensor);
      pass.pass(1, dx.tensor);
    }
  }
};

struct Result {
  Tensor sum, y, rstd;
  std::int64_t H;
};

Result forward(Tape& tape, const Var& x, const Tensor& residual, const Var& weight, double eps) {
  WEFT_CHECK(x.shape().rank() >= 1 && x.shape().back() > 0, "rms_norm: x is {}", x.shape().str());
  const std::int64_t D = x.shape().back();
  const std::int64_t R = x.shape().rows();
  WEFT_CHECK(weight.shape().back() == D && weight.dtype() == accumulator_dtype(x.dtype()),
             "rms_norm: weight {} {} for x {} {}", weight.shape().str(), name_of(weight.dtype()), x.shape().str(),
             name_of(x.dtype()));
  const std::int64_t H = weight.shape().rows();
  WEFT_CHECK(H > 0 && R % H == 0, "rms_norm: {} weight rows for {} rows", H, R);
  Result result{.sum = residual.defined() ? tape.empty(x.shape(), x.dtype()) : Tensor{},
                .y = tape.empty(x.shape(), x.dtype()),
                .rstd = tape.empty({R}, accumulator_dtype(x.dtype())),
                .H = H};
  // x, residual, weight -> y, rstd, sum; the latter only with a residual.
  const auto launch = [H, eps](const Tape& on, std::span<const Tensor> in, std::span<const Tensor> out) {
    const auto raw_if = [](const Tensor& t) { return t.defined() ? t.raw() : nullptr; };
    kForward.run(on, {.dtype = in[0].dtype(),
                      .R = in[0].shape().rows(),
                      .D = in[0].shape().back(),
                      .H = H,
                      .eps = eps,
                      .x = in[0].raw(),
                      .residual = raw_if(in[1]),
                      .weight = in[2].raw(),
                      .sum = raw_if(out[2]),
                      .y = out[0].raw(),
                      .rstd = out[1].raw()});
  };
  launch(tape, std::array{x.value, residual, weight.value}, std::array{result.y, result.rstd, result.sum});
  // The sum is what the residual stream goes on with. The norm starts from it as it is stored.
  const Tensor& start = residual.defined() ? result.sum : x.value;
  tape.remember_cheap({start, {}, weight.value}, {result.y, result.rstd, {}}, launch);
  return result;
}

}  // namespace

Var rms_norm(Tape& tape, const Var& x, const Var& weight, double eps) {
  const Result r = forward(tape, x, {}, weight, eps);
  return tape.record("rms_norm", {x, weight}, r.y, [&] {
    return RmsNormSaved{x.value, weight.value, r.rstd, r.H, false};
  });
}

std::array<Var, 2> add_rms_norm(Tape& tape, const Var& x, const Var& residual, const Var& weight, double eps) {
  WEFT_CHECK(x.shape() == residual.shape(), "add_rms_norm: {} and {}", x.shape().str(), residual.shape().str());
  const Result r = forward(tape, x, residual.value, weight, eps);
  return tape.record("add_rms_norm", {x, residual, weight}, std::array{r.sum, r.y}, [&] {
    return RmsNormSaved{r.sum, weight.value, r.rstd, r.H, true};
  });
}

}  // namespace weft
