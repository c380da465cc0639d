#include "modules/mixers/lightning/lightning.h"

#include <cmath>

#include "autograd/ops/activation/activation.h"
#include "autograd/ops/elementwise/elementwise.h"
#include "autograd/ops/lrpe/lrpe.h"
#include "modules/families/gated_linear/gated_linear_layer.h"
#include "modules/mixers/lightning/slopes.h"

namespace weft {
namespace {

using Norm = GatedLinearLayerConfig::Norm;
using Gate = GatedLinearLayerConfig::Gate;

// The family's config, and what this mixer adds to it.
struct LightningConfig {
  GatedLinearLayerConfig layer;
  std::vector<double> log_decays;
  bool value_activation;
  bool rotation;  // LRPE
};

// 10000^(-2i/n) for channel i of all n channels of the heads.
std::vector<double> initial_frequencies(std::int64_t n) {
  std::vector<double> theta;
  for (std::int64_t i = 0; i < n; ++i) {
    theta.push_back(std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(n)));
  }
  return theta;
}

class Lightning final : public GatedLinearLayer {
 public:
  Lightning(const ParameterScope& scope, const LightningConfig& config)
      : GatedLinearLayer(scope, config.layer),
        decay_(constant<ConstantVector>(config.log_decays)),
        value_activation_(config.value_activation) {
    if (!config.rotation) return;
    const std::int64_t channels = config.layer.heads * config.layer.key_width();
    frequencies_ = constant<ConstantVector>(initial_frequencies(channels));
    theta_ = &scope.declare("theta", {channels}, ParameterKind::vector, Init::constant(0.0));
  }

 private:
  Inputs inputs(Tape& tape, const Var& x, const Heads& h, const DocumentsPtr& documents) override {
    Var q = silu(tape, h.q), k = silu(tape, h.k);
    if (theta_ != nullptr) {
      // What is trained is added to the initial frequencies.
      const Var theta =
          add(tape, frequencies_->on(tape, x.dtype()), tape.parameter(*theta_)).reshape({h.q.dim(1), h.q.dim(2)});
      q = lrpe(tape, q, theta, documents);
      k = lrpe(tape, k, theta, documents);
    }
    return {.q = q, .k = k, .v = value_activation_ ? silu(tape, h.v) : h.v, .decay = decay_->on(tape, x.dtype())};
  }

  std::shared_ptr<const ConstantVector> decay_;
  bool value_activation_;
  // With the rotation only.
  std::shared_ptr<const ConstantVector> frequencies_;
  Parameter* theta_ = nullptr;
};

Norm norm_of(const std::string& name) {
  return name == "joint" ? Norm::joint : name == "per_head" ? Norm::per_head : Norm::simple;
}

Gate gate_of(const std::string& name) {
  if (name == "sigmoid") return Gate::sigmoid;
  if (name == "silu") return Gate::silu;
  return name == "linear" ? Gate::linear : Gate::none;
}

std::unique_ptr<Mixer> create(const ParameterScope& scope, const MixerSite& site, const Options& options,
                              const std::string& where) {
  const std::int64_t heads = options.integer("heads");
  const std::int64_t width = options.integer("head_dim");
  const std::int64_t d_v = options.integer("value_dim") == 0 ? width : options.integer("value_dim");
  const std::int64_t rank = options.integer("gate_rank");
  const Gate gate = gate_of(options.text("gate"));
  if (rank > 0 && gate == Gate::none) {
    config_error("{}: gate_rank = {} with gate = \"none\"; leave the rank out, or choose a gate", where, rank);
  }
  if (rank >= std::min(site.width, heads * d_v)) {
    config_error(
        "{}: gate_rank = {} is no low rank for a gate from {} to {} channels; use a smaller rank, or 0 for a "
        "full gate",
        where, rank, site.width, heads * d_v);
  }
  const bool value_activation = options.text("value_activation") == "silu";
  const std::string& lrpe = options.text("lrpe");
  const bool rotation = lrpe == "all" || (lrpe == "first_layer" && site.layer == 0);
  // Queries and keys before the activation, and again before they are turned; values before theirs.
  const std::int64_t kept = heads * ((rotation ? 4 : 2) * width + (value_activation ? d_v : 0));
  return std::make_unique<Lightning>(
      scope, LightningConfig{.layer = {.site = site,
                                       .heads = heads,
                                       .d_k = rotation ? 2 * width : width,
                                       .d_v = d_v,
                                       .decay = DecayKind::constant,
                                       .norm = norm_of(options.text("norm")),
                                       .gate = gate,
                                       .gate_rank = rank,
                                       .projected_width = width,
                                       .extra_saved = kept},
                             .log_decays = lightning_log_decays(options.text("slopes"), heads, site.layer, site.layers),
                             .value_activation = value_activation,
                             .rotation = rotation});
}

MixerType make_type() {
  MixerType type{.name = "lightning",
                 .summary = "linear attention with a constant decay per head (MiniMax-01, TransNormerLLM)",
                 .options = gated_linear_head_options(),
                 .context_parallel = ContextParallel::state,
                 .limits = {},
                 .create = create};
  const auto choice = [&](const char* key, const char* help, std::vector<std::string> choices) {
    type.options.push_back({.key = key, .default_value = choices[0], .help = help, .choices = choices});
  };
  choice("slopes", "how decays vary over heads and layers", {"geometric", "alibi", "linear"});
  choice("norm", "output norm over all heads together, over each, or over all without a weight",
         {"joint", "per_head", "simple"});
  choice("gate", "what multiplies the normalised output: a function of its own projection",
         {"sigmoid", "silu", "linear", "none"});
  type.options.push_back(integer_option("gate_rank", 0, "rank of the output gate; 0 = full", 0, 65536));
  choice("value_activation", "activation of values; that of queries and keys is silu", {"silu", "none"});
  choice("lrpe", "layers that turn queries and keys by trained frequencies", {"none", "first_layer", "all"});
  return type;
}

}  // namespace

const MixerType& lightning_mixer() {
  static const MixerType type = make_type();
  return type;
}

}  // namespace weft
