#include "modules/mixers/ttt_mlp/ttt_mlp.h"

#include "modules/families/ttt/ttt_layer.h"

namespace weft {
namespace {

std::unique_ptr<Mixer> create(const ParameterScope& scope, const MixerSite& site, const Options& options,
                              const std::string& where) {
  TttLayerConfig config = ttt_layer_config(site, options, where);
  config.hidden = options.integer("hidden_factor") * config.head_dim;
  return std::make_unique<TttLayer>(scope, config);
}

MixerType make_type() {
  MixerType type{.name = "ttt_mlp",
                 .summary = "test-time training: the state is a two-layer perceptron, trained while it reads",
                 .options = ttt_layer_options(0.1),
                 .context_parallel = ContextParallel::state,
                 .limits = {},
                 .create = create};
  type.options.push_back(
      integer_option("hidden_factor", 4, "width of the memory's hidden layer in head widths", 1, 64));
  return type;
}

}  // namespace

const MixerType& ttt_mlp_mixer() {
  static const MixerType type = make_type();
  return type;
}

}  // namespace weft
