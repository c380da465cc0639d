#include "modules/mixers/kda/kda.h"

#include "autograd/ops/decay_gate/decay_gate.h"
#include "autograd/ops/linear/linear.h"
#include "modules/families/delta_rule/delta_rule_layer.h"

namespace weft {
namespace {

constexpr double kLowerBound = -5.0;  // unless the recipe says otherwise

struct ForgetGate {
  DecayGateFunction function;
  double lower_bound;
  std::int64_t rank;
};

class Kda final : public DeltaRuleLayer {
 public:
  Kda(const ParameterScope& scope, const DeltaRuleLayerConfig& config, const ForgetGate& gate)
      : DeltaRuleLayer(scope, config), gate_(gate) {
    const std::int64_t keys = config.value_heads * config.d_k;
    wf_a_ = &scope.declare("wf_a", {gate.rank, config.site.width}, ParameterKind::matrix, Init::normal(0.02));
    wf_b_ = &scope.declare("wf_b", {keys, gate.rank}, ParameterKind::matrix, Init::normal(0.02));
    const bool bounded = gate.function == DecayGateFunction::bounded;
    a_log_ = &scope.declare("a_log", {config.value_heads}, ParameterKind::vector,
                            bounded ? Init::constant(0.0) : Init::log_uniform(1.0, 16.0));
    dt_bias_ = &scope.declare("dt_bias", {keys}, ParameterKind::vector, Init::inverse_softplus_log_uniform(1e-3, 1e-1));
  }

 private:
  Var decay(Tape& tape, const Var& x) override {
    const Var low = linear(tape, x, tape.parameter(*wf_a_));
    const Var f = linear(tape, low, tape.parameter(*wf_b_)).reshape({x.dim(0), config().value_heads, config().d_k});
    const Var a_log = tape.parameter(*a_log_), dt_bias = tape.parameter(*dt_bias_);
    return gate_.function == DecayGateFunction::bounded ? bounded_decay(tape, f, a_log, dt_bias, gate_.lower_bound)
                                                        : softplus_decay(tape, f, a_log, dt_bias);
  }

  ForgetGate gate_;
  Parameter *wf_a_, *wf_b_, *a_log_, *dt_bias_;
};

std::unique_ptr<Mixer> create(const ParameterScope& scope, const MixerSite& site, const Options& options,
                              const std::string& where) {
  DeltaRuleLayerConfig config = delta_rule_layer_config(site, options, where);
  const std::int64_t rank = options.integer("rank") == 0 ? config.d_v : options.integer("rank");
  const ForgetGate gate{
      .function = options.text("gate") == "bounded" ? DecayGateFunction::bounded : DecayGateFunction::softplus,
      .lower_bound = options.real("lower_bound"),
      .rank = rank};
  if (gate.function == DecayGateFunction::bounded && !(gate.lower_bound < 0.0)) {
    config_error("{}: lower_bound = {} would keep everything for ever; use a number from -5 to below 0", where,
                 gate.lower_bound);
  }
  if (gate.function == DecayGateFunction::softplus && gate.lower_bound != kLowerBound) {
    config_error(
        "{}: lower_bound = {} with gate = \"softplus\", which has none; leave it out, or use gate = \"bounded\"", where,
        gate.lower_bound);
  }
  const std::int64_t keys = config.value_heads * config.d_k;
  config.gate = DeltaRuleLayerConfig::Gate::sigmoid;
  config.gate_rank = options.text("output_gate") == "full" ? 0 : rank;
  config.gate_bias = options.flag("gate_bias");
  if (config.gate_rank == 0 && !config.gate_bias) {
    config_error("{}: gate_bias = false with output_gate = \"full\", which has no bias; leave it out", where);
  }
  config.decay_products = rank * (site.width + keys);
  config.decay_saved = rank + 2 * keys;  // gate inputs and decays
  return std::make_unique<Kda>(scope, config, gate);
}

MixerType make_type() {
  MixerType type{.name = "kda",
                 .summary = "Kimi Delta Attention: the delta rule with a learned decay per token and key channel",
                 .options = delta_rule_layer_options(),
                 .context_parallel = ContextParallel::state,
                 .limits = {},
                 .create = create};
  type.options.push_back(choice_option("gate", "bounded",
                                       "forget gate: bounded below, or -e^a_log softplus(.), which may forget at once",
                                       {"bounded", "softplus"}));
  type.options.push_back(
      real_option("lower_bound", kLowerBound, "smallest log decay of one token, bounded gate only", -5.0, 0.0));
  type.options.push_back(integer_option(
      "rank", 0, "rank of the projections of the forget gate and a low-rank output gate; 0 = value_dim", 0, 65536));
  type.options.push_back(
      choice_option("output_gate", "low_rank", "projection of the output gate", {"low_rank", "full"}));
  type.options.push_back(later(flag_option("gate_bias", true, "bias of a low-rank output gate")));
  return type;
}

}  // namespace

const MixerType& kda_mixer() {
  static const MixerType type = make_type();
  return type;
}

}  // namespace weft
