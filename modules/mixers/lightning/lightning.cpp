#include "modules/mixers/lightning/lightning.h"

#include "autograd/ops/activation/activation.h"
#include "modules/families/gated_linear/gated_linear_layer.h"
#include "modules/mixers/lightning/slopes.h"

namespace weft {
namespace {

class Lightning final : public GatedLinearLayer {
 public:
  Lightning(const ParameterScope& scope, const GatedLinearLayerConfig& config, const std::vector<double>& log_decays)
      : GatedLinearLayer(scope, config), decay_(log_decays) {}

 private:
  Inputs inputs(Tape& tape, const Var& x, const Heads& h, const DocumentsPtr&) override {
    return {.q = silu(tape, h.q), .k = silu(tape, h.k), .v = silu(tape, h.v), .decay = decay_.in(x.dtype())};
  }

  ConstantDecay decay_;
};

std::unique_ptr<Mixer> create(const ParameterScope& scope, const MixerSite& site, const Options& options,
                              const std::string& where) {
  const std::int64_t heads = options.integer("heads");
  const std::int64_t d_k = options.integer("head_dim");
  const std::int64_t d_v = options.integer("value_dim") == 0 ? d_k : options.integer("value_dim");
  const std::int64_t rank = options.integer("gate_rank");
  if (rank >= std::min(site.width, heads * d_v)) {
    config_error(
        "{}: gate_rank = {} is no low rank for a gate from {} to {} channels; use a smaller rank, or 0 for a "
        "full gate",
        where, rank, site.width, heads * d_v);
  }
  using Norm = GatedLinearLayerConfig::Norm;
  const GatedLinearLayerConfig config{.site = site,
                                      .heads = heads,
                                      .d_k = d_k,
                                      .d_v = d_v,
                                      .decay = DecayKind::constant,
                                      .norm = options.text("norm") == "joint" ? Norm::joint : Norm::per_head,
                                      .gate = GatedLinearLayerConfig::Gate::sigmoid,
                                      .gate_rank = rank,
                                      .extra_products = 0,
                                      .extra_saved = heads * (2 * d_k + d_v)};  // before the activation
  return std::make_unique<Lightning>(scope, config,
                                     lightning_log_decays(options.text("slopes"), heads, site.layer, site.layers));
}

MixerType make_type() {
  MixerType type{.name = "lightning",
                 .summary = "linear attention with a constant decay per head (MiniMax-01)",
                 .options = gated_linear_head_options(),
                 .context_parallel = ContextParallel::state,
                 .limits = {},
                 .create = create};
  type.options.push_back({.key = "slopes",
                          .default_value = std::string("geometric"),
                          .help = "how decays vary over heads and layers",
                          .choices = {"geometric", "alibi", "linear"}});
  type.options.push_back({.key = "norm",
                          .default_value = std::string("joint"),
                          .help = "output norm over all heads together, or over each",
                          .choices = {"joint", "per_head"}});
  type.options.push_back({.key = "gate_rank",
                          .default_value = std::int64_t{0},
                          .help = "rank of the output gate; 0 = full",
                          .minimum = 0,
                          .maximum = 65536,
                          .choices = {}});
  return type;
}

}  // namespace

const MixerType& lightning_mixer() {
  static const MixerType type = make_type();
  return type;
}

}  // namespace weft
