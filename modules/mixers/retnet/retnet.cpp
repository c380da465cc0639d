#include "modules/mixers/retnet/retnet.h"

#include <cmath>

#include "autograd/ops/rope/rope.h"
#include "modules/families/gated_linear/gated_linear_layer.h"

namespace weft {
namespace {

class RetNet final : public GatedLinearLayer {
 public:
  RetNet(const ParameterScope& scope, const GatedLinearLayerConfig& config, double base)
      : GatedLinearLayer(scope, config),
        decay_(constant<ConstantVector>(retnet_log_decays(config.heads))),
        rotation_(constant<RopeTable>(RopeConfig{.rotary_dim = config.d_k, .base = base})) {}

 private:
  Inputs inputs(Tape& tape, const Var& x, const Heads& h, const DocumentsPtr& documents) override {
    return {.q = rope(tape, h.q, documents, *rotation_),
            .k = rope(tape, h.k, documents, *rotation_),
            .v = h.v,
            .decay = decay_->on(tape, x.dtype()),
            .scale = 1.0 / std::sqrt(static_cast<double>(h.k.dim(2)))};
  }

  std::shared_ptr<const ConstantVector> decay_;
  std::shared_ptr<const RopeTable> rotation_;
};

std::unique_ptr<Mixer> create(const ParameterScope& scope, const MixerSite& site, const Options& options,
                              const std::string& where) {
  const std::int64_t d_k = options.integer("head_dim");
  if (d_k % 2 != 0) config_error("{}: head_dim = {} is odd; the rotation turns pairs of channels", where, d_k);
  const GatedLinearLayerConfig config{.site = site,
                                      .heads = options.integer("heads"),
                                      .d_k = d_k,
                                      .d_v = options.integer("value_dim") == 0 ? d_k : options.integer("value_dim"),
                                      .decay = DecayKind::constant,
                                      .norm = GatedLinearLayerConfig::Norm::per_head,
                                      .gate = GatedLinearLayerConfig::Gate::silu};
  return std::make_unique<RetNet>(scope, config, options.real("rope_base"));
}

MixerType make_type() {
  MixerType type{.name = "retnet",
                 .summary = "retention: rotated queries and keys, a constant decay per head",
                 .options = gated_linear_head_options(),
                 .context_parallel = ContextParallel::state,
                 .limits = {},
                 .create = create};
  type.options.push_back(real_option("rope_base", 10000.0, "base of the rotation's frequencies", 1.0, 1e12));
  return type;
}

}  // namespace

std::vector<double> retnet_log_decays(std::int64_t heads) {
  std::vector<double> decays;
  for (std::int64_t h = 0; h < heads; ++h) decays.push_back(std::log1p(-std::exp2(-5.0 - static_cast<double>(h))));
  return decays;
}

const MixerType& retnet_mixer() {
  static const MixerType type = make_type();
  return type;
}

}  // namespace weft
