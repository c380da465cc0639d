#include "autograd/ops/linear_cross_entropy/linear_cross_entropy.h"

#include "autograd/ops/linear_cross_entropy/linear_cross_entropy_cpu.h"

namespace weft {
namespace {

constexpr Dispatch<LinearCrossEntropyForward> kForward{
    "linear_cross_entropy forward", [](const LinearCrossEntropyForward& args, const Launch& launch) {
      dispatch_real(args.dtype, "linear_cross_entropy", [&]<class T>() {
        linear_cross_entropy_forward_cpu<T>(args, static_cast<std::byte*>(launch.workspace));
      });
    }};
constexpr Dispatch<LinearCrossEntropyBackward> kBackward{
    "linear_cross_entropy backward", [](const LinearCrossEntropyBackward& args, const Launch&) {
      dispatch_real(args.dtype, "linear_cross_entropy", [&]<class T>() { linear_cross_entropy_backward_cpu<T>(args); });
    }};

struct LossSaved {
  Tensor dx, dweight;  // for a seed of 1; undefined where no gradient is wanted

  void backward(Backward& pass) const {
    const Tensor seed = pass.grad(0);
    const auto scale = [&](const Tensor& gradient, const GradTarget& target) {
      kBackward({.dtype = gradient.dtype(),
                 .n = gradient.numel(),
                 .seed = seed.raw(),
                 .gradient = gradient.raw(),
                 .target = target.raw(),
                 .write = target.write},
                pass.launch());
    };
    if (dx.defined()) {
      // Scaled in place and handed over: no second [T, d].
      scale(dx, {dx, Write::overwrite});
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
                 (options.token_losses.shape() == row && options.token_losses.dtype() == x.dtype()),
             "linear_cross_entropy: token_losses {} {} for x {} {}", options.token_losses.shape().str(),
             name_of(options.token_losses.dtype()), x.shape().str(), name_of(x.dtype()));
  WEFT_CHECK(options.denominator > 0.0, "linear_cross_entropy: denominator {}; a step without tokens is skipped",
             options.denominator);
}

}  // namespace

std::size_t linear_cross_entropy_workspace(const LinearCrossEntropyForward& args) {
  std::size_t bytes = 0;
  dispatch_real(args.dtype, "linear_cross_entropy",
                [&]<class T>() { loss::Workspace<T>::carve(args, nullptr, bytes); });
  return bytes;
}

LossTerms linear_cross_entropy(Tape& tape, const Var& x, const Var& weight, const Tensor& labels, const Tensor& weights,
                               const LossOptions& options) {
  check(x, weight, labels, weights, options);
  const auto wanted = [&](const Var& v) {
    return tape.recording() && v.requires_grad() ? tape.empty(v.shape(), v.dtype()) : Tensor{};
  };
  const Tensor dx = wanted(x);
  const Tensor dweight = wanted(weight);
  const Tensor loss = tape.empty({1}, x.dtype());
  LossTerms terms;
  const LinearCrossEntropyForward args{
      .dtype = x.dtype(),
      .T = x.dim(0),
      .d = x.dim(1),
      .V = weight.dim(0),
      .denominator = options.denominator,
      .z_loss = options.z_loss,
      .x = x.value.raw(),
      .weight = weight.value.raw(),
      .labels = labels.data<std::int32_t>(),
      .weights = weights.defined() ? weights.data<float>() : nullptr,
      .loss = loss.raw(),
      .sums = &terms.sums,
      .token_losses = options.token_losses.defined() ? options.token_losses.raw() : nullptr,
      .dx = dx.defined() ? dx.raw() : nullptr,
      .dweight = dweight.defined() ? dweight.raw() : nullptr};
  kForward(args, tape.launch(linear_cross_entropy_workspace(args)));
  terms.loss = tape.record("linear_cross_entropy", {x, weight}, loss, [&] { return LossSaved{dx, dweight}; });
  return terms;
}

}  // namespace weft
