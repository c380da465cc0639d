#include "modules/mixers/deltanet/deltanet.h"

#include "modules/families/delta_rule/delta_rule_layer.h"

namespace weft {
namespace {

class DeltaNet final : public DeltaRuleLayer {
 public:
  DeltaNet(const ParameterScope& scope, const DeltaRuleLayerConfig& config) : DeltaRuleLayer(scope, config) {}

 private:
  Var decay(Tape&, const Var&) override { return {}; }
};

std::unique_ptr<Mixer> create(const ParameterScope& scope, const MixerSite& site, const Options& options,
                              const std::string& where) {
  DeltaRuleLayerConfig config = delta_rule_layer_config(site, options, where);
  using Gate = DeltaRuleLayerConfig::Gate;
  config.gate = options.flag("output_gate") ? Gate::silu : Gate::none;
  return std::make_unique<DeltaNet>(scope, config);
}

MixerType make_type() {
  MixerType type{.name = "deltanet",
                 .summary = "DeltaNet: the delta rule without decay",
                 .options = delta_rule_layer_options(),
                 .context_parallel = ContextParallel::state,
                 .limits = {},
                 .create = create};
  type.options.push_back(flag_option("output_gate", false, "gate the normalised output by silu(x wg^T)"));
  return type;
}

}  // namespace

const MixerType& deltanet_mixer() {
  static const MixerType type = make_type();
  return type;
}

}  // namespace weft
