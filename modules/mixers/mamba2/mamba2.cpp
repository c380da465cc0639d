// T tokens, d model width, H heads, d_k channels of the state, d_v head width, G groups of heads, w taps.

#include "modules/mixers/mamba2/mamba2.h"

#include <cmath>

#include "autograd/ops/activation/activation.h"
#include "autograd/ops/decay_gate/decay_gate.h"
#include "autograd/ops/elementwise/elementwise.h"
#include "autograd/ops/gate/gate.h"
#include "autograd/ops/head_skip/head_skip.h"
#include "autograd/ops/linear/linear.h"
#include "autograd/ops/rms_norm/rms_norm.h"
#include "autograd/ops/short_conv/short_conv.h"
#include "modules/families/gated_linear/gated_linear_mixer.h"

namespace weft {
namespace {

struct Mamba2Config {
  MixerSite site;
  std::int64_t heads, d_k, d_v, groups, taps;

  std::int64_t keys() const { return groups * d_k; }
  std::int64_t values() const { return heads * d_v; }
};

GatedLinearSizes sizes(const Mamba2Config& c) {
  const std::int64_t d = c.site.width, H = c.heads;
  return {
      .width = d,
      .heads = H,
      .d_k = c.d_k,
      .d_v = c.d_v,
      .decay = DecayKind::scalar,
      .weights = 2 * d * c.keys() + 3 * d * c.values() + d * H + c.taps * (2 * c.keys() + c.values()),
      // x; what the convolutions see; C and B; u, Delta u, o with the skip, its gate, gated, normed; for each head
      // Delta, Delta before the softplus, its logit and the decay; inverse norms.
      .saved = d + 4 * c.keys() + 7 * c.values() + 4 * H + c.groups,
      .carried = {{{c.keys(), c.taps - 1}, true}, {{c.keys(), c.taps - 1}, true}, {{c.values(), c.taps - 1}, true}}};
}

class Mamba2 final : public GatedLinearMixer {
 public:
  Mamba2(const ParameterScope& scope, const Mamba2Config& config) : GatedLinearMixer(sizes(config)), config_(config) {
    const std::int64_t d = config.site.width, H = config.heads;
    const auto branch = [&](const std::string& name, std::int64_t width) {
      const double bound = 1.0 / std::sqrt(static_cast<double>(config.taps));
      return Branch{&scope.declare("w" + name, {width, d}, ParameterKind::matrix, Init::normal(0.02)),
                    &scope.declare("conv_" + name, {width, config.taps}, ParameterKind::convolution,
                                   Init::uniform(-bound, bound)),
                    &scope.declare("conv_" + name + "_bias", {width}, ParameterKind::vector, Init::constant(0.0))};
    };
    q_ = branch("q", config.keys());
    k_ = branch("k", config.keys());
    v_ = branch("v", config.values());
    wg_ = &scope.declare("wg", {config.values(), d}, ParameterKind::matrix, Init::normal(0.02));
    w_dt_ = &scope.declare("w_dt", {H, d}, ParameterKind::matrix, Init::normal(0.02));
    dt_bias_ = &scope.declare("dt_bias", {H}, ParameterKind::vector, Init::inverse_softplus_log_uniform(1e-3, 0.1));
    a_log_ = &scope.declare("a_log", {H}, ParameterKind::vector, Init::log_uniform(1.0, 16.0));
    skip_ = &scope.declare("skip", {H}, ParameterKind::vector, Init::constant(1.0));
    norm_w_ = &scope.declare("norm_w", {config.values()}, ParameterKind::vector, Init::constant(1.0));
    wo_ = &declare_output(scope, config.site, config.values());
  }

 private:
  // A projection and the short convolution behind it.
  struct Branch {
    Parameter *weight, *taps, *bias;
  };

  Var mix(Tape& tape, const Var& x, const DocumentsPtr& documents, GatedLinearState* state) override {
    const std::int64_t T = x.dim(0), H = config_.heads;
    const auto part = [&](std::size_t i) { return state != nullptr ? state->parts[i] : Tensor{}; };
    const auto convolved = [&](const Branch& branch, const Tensor& tail) {
      return short_convolution(tape, linear(tape, x, tape.parameter(*branch.weight)), tape.parameter(*branch.taps),
                               tape.parameter(*branch.bias), documents, ConvolutionActivation::silu, tail);
    };
    const Var q = convolved(q_, part(1)).reshape({T, config_.groups, config_.d_k});
    const Var k = convolved(k_, part(2)).reshape({T, config_.groups, config_.d_k});
    const Var u = convolved(v_, part(3)).reshape({T, H, config_.d_v});

    const Var dt = linear(tape, x, tape.parameter(*w_dt_));
    const Var step = softplus(tape, add_row(tape, dt, tape.parameter(*dt_bias_)));
    const Var g = softplus_decay(tape, dt, tape.parameter(*a_log_), tape.parameter(*dt_bias_));
    const Var o = recurrence(tape, {.q = q, .k = k, .v = linear_gate(tape, u, step), .decay = g}, documents, part(0));

    const Var y = head_skip(tape, o, u, tape.parameter(*skip_)).reshape({T, config_.values()});
    const Var gated = silu_gate(tape, y, linear(tape, x, tape.parameter(*wg_)));
    const Shape grouped{config_.groups, config_.values() / config_.groups};
    const Var normed =
        rms_norm(tape, gated.reshape({T, grouped[0], grouped[1]}), tape.parameter(*norm_w_).reshape(grouped));
    return linear(tape, normed.reshape({T, config_.values()}), tape.parameter(*wo_));
  }

  Mamba2Config config_;
  Branch q_, k_, v_;  // C, B and x of the paper
  Parameter *wg_, *w_dt_, *dt_bias_, *a_log_, *skip_, *norm_w_, *wo_;
};

std::unique_ptr<Mixer> create(const ParameterScope& scope, const MixerSite& site, const Options& options,
                              const std::string& where) {
  const Mamba2Config config{.site = site,
                            .heads = options.integer("heads"),
                            .d_k = options.integer("state_dim"),
                            .d_v = options.integer("head_dim"),
                            .groups = options.integer("groups"),
                            .taps = options.integer("conv_width")};
  if (config.heads % config.groups != 0) {
    config_error(
        "{}: heads = {} is no multiple of groups = {}; each group of heads shares its queries and keys, so use "
        "heads = {} or another multiple",
        where, config.heads, config.groups, (config.heads / config.groups + 1) * config.groups);
  }
  return std::make_unique<Mamba2>(scope, config);
}

MixerType make_type() {
  return {.name = "mamba2",
          .summary = "state space duality: a linear recurrence with step sizes and decays of each token (Mamba-2)",
          .options = {integer_option("heads", 8, "heads H", 1, 4096),
                      integer_option("head_dim", 64, "width d_v of a head's values", 1, 4096),
                      integer_option("state_dim", 128,
                                     "width d_k of queries and keys (C and B), the channels of the state", 1, 4096),
                      integer_option("groups", 1, "groups of heads that share queries and keys", 1, 4096),
                      integer_option("conv_width", 4, "taps of the short convolutions", 2, kMaxConvolutionTaps)},
          .context_parallel = ContextParallel::state,
          .limits = {},
          .create = create};
}

}  // namespace

const MixerType& mamba2_mixer() {
  static const MixerType type = make_type();
  return type;
}

}  // namespace weft
