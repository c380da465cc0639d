#include "modules/mixers/gdn/gdn.h"

#include "autograd/ops/decay_gate/decay_gate.h"
#include "autograd/ops/linear/linear.h"
#include "modules/families/delta_rule/delta_rule_layer.h"

namespace weft {
namespace {

class Gdn final : public DeltaRuleLayer {
 public:
  Gdn(const ParameterScope& scope, const DeltaRuleLayerConfig& config) : DeltaRuleLayer(scope, config) {
    const std::int64_t H = config.value_heads;
    wa_ = &scope.declare("wa", {H, config.site.width}, ParameterKind::matrix, Init::normal(0.02));
    a_log_ = &scope.declare("a_log", {H}, ParameterKind::vector, Init::log_uniform(1.0, 16.0));
    dt_bias_ = &scope.declare("dt_bias", {H}, ParameterKind::vector, Init::inverse_softplus_log_uniform(1e-3, 1e-1));
  }

 private:
  Var decay(Tape& tape, const Var& x) override {
    return softplus_decay(tape, linear(tape, x, tape.parameter(*wa_)), tape.parameter(*a_log_),
                          tape.parameter(*dt_bias_));
  }

  Parameter *wa_, *a_log_, *dt_bias_;
};

std::unique_ptr<Mixer> create(const ParameterScope& scope, const MixerSite& site, const Options& options,
                              const std::string& where) {
  DeltaRuleLayerConfig config = delta_rule_layer_config(site, options, where);
  config.gate = DeltaRuleLayerConfig::Gate::silu;
  config.decay_products = config.value_heads * site.width;
  config.decay_saved = 2 * config.value_heads;  // gate inputs and decays
  return std::make_unique<Gdn>(scope, config);
}

}  // namespace

const MixerType& gdn_mixer() {
  static const MixerType type{.name = "gdn",
                              .summary = "gated delta net: the delta rule with a learned decay per token and head",
                              .options = delta_rule_layer_options(),
                              .context_parallel = ContextParallel::state,
                              .limits = {},
                              .create = create};
  return type;
}

}  // namespace weft
