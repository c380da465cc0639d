#include "modules/mixers/gla/gla.h"

#include <cmath>

#include "autograd/ops/activation/activation.h"
#include "autograd/ops/linear/linear.h"
#include "modules/families/gated_linear/gated_linear_layer.h"

namespace weft {
namespace {

class Gla final : public GatedLinearLayer {
 public:
  Gla(const ParameterScope& scope, const GatedLinearLayerConfig& config, std::int64_t rank, double temperature)
      : GatedLinearLayer(scope, config), temperature_(temperature) {
    const std::int64_t keys = config.heads * config.d_k;
    wf_a_ = &scope.declare("wf_a", {rank, config.site.width}, ParameterKind::matrix, Init::normal(0.02));
    wf_b_ = &scope.declare("wf_b", {keys, rank}, ParameterKind::matrix, Init::normal(0.02));
    bf_ = &scope.declare("bf", {keys}, ParameterKind::vector, Init::constant(0.0));
  }

 private:
  Inputs inputs(Tape& tape, const Var& x, const Heads& h, const DocumentsPtr&) override {
    const Var low = linear(tape, x, tape.parameter(*wf_a_));
    const Var logits = linear(tape, low, tape.parameter(*wf_b_), tape.parameter(*bf_));
    return {.q = h.q,
            .k = h.k,
            .v = h.v,
            .decay = log_sigmoid(tape, logits, 1.0 / temperature_).reshape(h.k.shape()),
            .scale = 1.0 / std::sqrt(static_cast<double>(h.k.dim(2)))};
  }

  double temperature_;
  Parameter *wf_a_, *wf_b_, *bf_;
};

std::unique_ptr<Mixer> create(const ParameterScope& scope, const MixerSite& site, const Options& options,
                              const std::string& where) {
  const std::int64_t heads = options.integer("heads");
  const std::int64_t d_k = options.integer("head_dim");
  const std::int64_t rank = options.integer("decay_rank");
  const double temperature = options.real("decay_temperature");
  if (!(temperature > 0.0)) config_error("{}: decay_temperature = {} must be positive", where, temperature);
  const GatedLinearLayerConfig config{.site = site,
                                      .heads = heads,
                                      .d_k = d_k,
                                      .d_v = options.integer("value_dim") == 0 ? d_k : options.integer("value_dim"),
                                      .decay = DecayKind::vector,
                                      .norm = GatedLinearLayerConfig::Norm::per_head,
                                      .gate = GatedLinearLayerConfig::Gate::silu,
                                      .extra_products = rank * (site.width + heads * d_k),
                                      .extra_saved = rank + 2 * heads * d_k};  // logits and decays
  return std::make_unique<Gla>(scope, config, rank, temperature);
}

MixerType make_type() {
  MixerType type{.name = "gla",
                 .summary = "gated linear attention: a learned decay per token and key channel",
                 .options = gated_linear_head_options(),
                 .context_parallel = ContextParallel::state,
                 .limits = {},
                 .create = create};
  type.options.push_back(integer_option("decay_rank", 16, "rank of the projection that gives the decays", 1, 65536));
  type.options.push_back(real_option(
      "decay_temperature", 16.0, "tau: log decays are log sigma(.) / tau, so larger forgets more slowly", 0.0, 1e6));
  return type;
}

}  // namespace

const MixerType& gla_mixer() {
  static const MixerType type = make_type();
  return type;
}

}  // namespace weft
