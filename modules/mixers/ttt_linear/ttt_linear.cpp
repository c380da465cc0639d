#include "modules/mixers/ttt_linear/ttt_linear.h"

#include "modules/families/ttt/ttt_layer.h"

namespace weft {
namespace {

std::unique_ptr<Mixer> create(const ParameterScope& scope, const MixerSite& site, const Options& options,
                              const std::string& where) {
  return std::make_unique<TttLayer>(scope, ttt_layer_config(site, options, where));
}

}  // namespace

const MixerType& ttt_linear_mixer() {
  static const MixerType type{.name = "ttt_linear",
                              .summary = "test-time training: the state is a linear map, trained while it reads",
                              .options = ttt_layer_options(1.0),
                              .context_parallel = ContextParallel::state,
                              .limits = {},
                              .create = create};
  return type;
}

}  // namespace weft
