#include "autograd/ops/linear_cross_entropy/linear_cross_entropy.h"

#include "autograd/ops/linear_cross_entropy/linear_cross_entropy_cpu.h"
#include "autograd/transfer.h"

namespace weft {
namespace {

constexpr Dispatch<LinearCrossEntropyForward> kForward{
    .op = "linear_cross_entropy forward",
    .cpu =
        [](const LinearCrossEntropyForward& args, const Launch& launch) {
          dispatch_real(args.dtype, "linear_cross_entropy", [&]<class T>() {
            linear_cross_entropy_forward_cpu<T>(args, static_cast<std::byte*>(launch.workspace));
          });
        },
    .cuda = WEFT_ON_CUDA(linear_cross_entropy_forward_cuda),
    .cpu_workspace =
        [](const LinearCrossEntropyForward& args) {
          std::size_t bytes = 0;
          dispatch_real(args.dtype, "linear_cross_entropy",
                        [&]<class T>() { loss::Workspace<T>::carve(args, nullptr, bytes); });
          return bytes;
        },
    .cuda_workspace = WEFT_ON_CUDA(linear_cross_entropy_forward_cuda_workspace)};
constexpr Dispatch<LinearCrossEntropyBackward> kBackward{
    .op = "linear_cross_entropy backward",
    .cpu =
        [](const LinearCrossEntropyBackward& args, const Launch&) {
          dispatch_real(args.dtype, "linear_cross_entropy",
                        [&]<class T>() { linear_cross_entropy_backward_cpu<T>(args); });
        },
    .cuda = WEFT_ON_CUDA(linear_cross_entropy_backward_cuda)};

struct LossSaved {
  Tensor dx, dweight;  // for a seed of 1; undefined where no gradient is wanted, or it has arrived already
  bool unit_seed;

  void backward(Backward& pass) const {
    const Tensor seed = pass.grad(0);
    const auto scale = [&](const Tensor& gradient, const GradTarget& target) {
      kBackward.run(pass, {.dtype = gradient.dtype(),
                           .n = gradient.numel(),
                           .seed = seed.raw(),
                           .gradient = gradient.raw(),
                           .target = target.raw(),
                           .write = target.write});
    };
    if (dx.defined()) {
      // Scaled in place and handed over: no second [T, d].
      if (!unit_seed) scale(dx, {dx, Write::overwrite});
      pass.pass(0, dx);
    }
    if (dweight.defined()) scale(dweight, pass.target(1));
  }
};

void check(const Var& x, const Var& weight, const Tensor& labels, const Tensor& weights, const LossOptions& options) {
  WEFT_CHECK(x.shape().rank() == 2 && weight.shape().rank() == 2 && weight.dim(1) == x.dim(1) && weight.dim(0) > 0,
             "linear_cross_entropy: x {} and weight {}", x.shape().str(), weight.shape().str());
  WEFT_CHECK(x.dtype() == weight.dtype(), "linear_cross_entropy: x {} and weight {}", name_of(x.dtype()),
             name_of(weight.dtype()));
  const Shape row{x.dim(0)};
  WEFT_CHECK(labels.shape() == row && labels.dtype() == DType::i32, "linear_cross_entropy: labels {} {} for x {}",
             labels.shape().str(), name_of(labels.dtype()), x.shape().str());
  WEFT_CHECK(!weights.defined() || (weights.shape() == row && weights.dtype() == DType::f32),
             "linear_cross_entropy: weights {} {} for x {}", weights.shape().str(), name_of(weights.dtype()),
             x.shape().str());
  WEFT_CHECK(!options.token_losses.defined() ||
                 (options.token_losses.shape() == row && options.token_losses.dtype() == accumulator_dtype(x.dtype())),
             "linear_cross_entropy: token_losses {} {} for x {} {}", options.token_losses.shape().str(),
             name_of(options.token_losses.dtype()), x.shape().str(), name_of(x.dtype()));
  WEFT_CHECK(!options.recorded_denominator.defined() || !options.recorded_denominator.device().is_cpu(),
             "linear_cross_entropy: a recorded denominator on the CPU");
  WEFT_CHECK(options.denominator > 0.0, "linear_cross_entropy: denominator {}; a step without tokens is skipped",
             options.denominator);
}

}  // namespace

LossSums read_loss_sums(const Tensor& sums, const Stream& stream) {
  const Tensor host = to_host(sums, stream);
  const std::span<const double> value = host.span<double>();
  return {.loss = value[0],
          .log_z_squared = value[1],
          .weight = value[2],
          .token_count = static_cast<std::int64_t>(value[3])};
}

LossTerms linear_cross_entropy(Tape& tape, const Var& x, const Var& weight, const Tensor& labels, const Tensor& weights,
                               const LossOptions& options) {
  check(x, weight, labels, weights, options);
  const auto wanted = [&](const Var& v, DType dtype) {
    return tape.recording() && v.requires_grad() ? tape.empty(v.shape(), dtype) : Tensor{};
  };
  const DType accumulator = accumulator_dtype(x.dtype());
  const Tensor dx = wanted(x, x.dtype());
  const GradTarget parameter =
      options.unit_seed && !tape.device().is_cpu() ? tape.parameter_gradient(weight) : GradTarget{};
  const Tensor dweight = parameter.wanted() ? Tensor{} : wanted(weight, accumulator);
  LossTerms terms;
  terms.sums = tape.empty({4}, DType::f64);
  const Tensor loss = tape.empty({1}, accumulator);
  kForward.run(tape, {.dtype = x.dtype(),
                      .T = x.dim(0),
                      .d = x.dim(1),
                      .V = weight.dim(0),
                      .denominator = options.denominator,
                      .recorded_denominator =
                          options.recorded_denominator.defined() ? options.recorded_denominator.data<float>() : nullptr,
                      .z_loss = options.z_loss,
                      .x = x.value.raw(),
                      .weight = weight.value.raw(),
                      .labels = labels.data<std::int32_t>(),
                      .weights = weights.defined() ? weights.data<float>() : nullptr,
                      .loss = loss.raw(),
                      .sums = terms.sums.data<double>(),
                      .token_losses = options.token_losses.defined() ? options.token_losses.raw() : nullptr,
                      .dx = dx.defined() ? dx.raw() : nullptr,
                      .dweight = parameter.wanted()  ? parameter.raw()
                                 : dweight.defined() ? dweight.raw()
                                                     : nullptr,
                      .write_dweight = parameter.write});
  terms.loss = tape.record("linear_cross_entropy", {x, weight}, loss, [&] {
    return LossSaved{dx, dweight, options.unit_seed};
  });
  return terms;
}

}  // namespace weft
