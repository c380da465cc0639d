#include "modules/mixers/hgrn2/hgrn2.h"

#include "autograd/ops/activation/activation.h"
#include "autograd/ops/forget_gate/forget_gate.h"
#include "modules/families/gated_linear/gated_linear_layer.h"

namespace weft {
namespace {

class Hgrn2 final : public GatedLinearLayer {
 public:
  Hgrn2(const ParameterScope& scope, const GatedLinearLayerConfig& config, double lower_bound)
      : GatedLinearLayer(scope, config), lower_bound_(lower_bound) {}

 private:
  Inputs inputs(Tape& tape, const Var&, const Heads& h, const DocumentsPtr&) override {
    const auto [k, g] = forget_gate(tape, h.k, lower_bound_);
    return {.q = silu(tape, h.q), .k = k, .v = h.v, .decay = g};
  }

  double lower_bound_;
};

std::unique_ptr<Mixer> create(const ParameterScope& scope, const MixerSite& site, const Options& options,
                              const std::string& where) {
  const std::int64_t heads = options.integer("heads");
  const std::int64_t d_k = options.integer("head_dim");
  const double given = options.real("lower_bound");
  if (given == 1.0 || (given < 0.0 && given != -1.0)) {
    config_error("{}: lower_bound = {} must be at least 0 and below 1, or -1 for layer / layers", where, given);
  }
  const GatedLinearLayerConfig config{.site = site,
                                      .heads = heads,
                                      .d_k = d_k,
                                      .d_v = options.integer("value_dim") == 0 ? d_k : options.integer("value_dim"),
                                      .decay = DecayKind::vector,
                                      .norm = GatedLinearLayerConfig::Norm::joint,
                                      .gate = GatedLinearLayerConfig::Gate::none,
                                      .extra_saved = 3 * heads * d_k};  // projected queries, logits, decays
  return std::make_unique<Hgrn2>(scope, config, given < 0.0 ? hgrn2_lower_bound(site.layer, site.layers) : given);
}

MixerType make_type() {
  MixerType type{.name = "hgrn2",
                 .summary = "gated linear recurrence whose keys are what its forget gates let go (HGRN2)",
                 .options = gated_linear_head_options(),
                 .context_parallel = ContextParallel::state,
                 .limits = {},
                 .create = create};
  type.options.push_back(
      real_option("lower_bound", -1.0,
                  "least value of a forget gate; -1 = layer / layers, so deeper layers forget more slowly", -1.0, 1.0));
  return type;
}

}  // namespace

double hgrn2_lower_bound(std::int64_t layer, std::int64_t layers) {
  return static_cast<double>(layer) / static_cast<double>(layers);
}

const MixerType& hgrn2_mixer() {
  static const MixerType type = make_type();
  return type;
}

}  // namespace weft
