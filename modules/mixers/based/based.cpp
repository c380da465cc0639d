#include "modules/mixers/based/based.h"

#include "modules/families/gated_linear/linear_attention_layer.h"

namespace weft {
namespace {

std::unique_ptr<Mixer> create(const ParameterScope& scope, const MixerSite& site, const Options& options,
                              const std::string&) {
  return std::make_unique<LinearAttentionLayer>(scope, LinearAttentionConfig{.site = site,
                                                                             .heads = options.integer("heads"),
                                                                             .d_x = options.integer("feature_dim"),
                                                                             .d_v = options.integer("value_dim"),
                                                                             .map = FeatureMap::taylor});
}

MixerType make_type() {
  return {.name = "based",
          .summary = "linear attention on second-order Taylor features of narrow queries and keys (BASED)",
          .options = {integer_option("heads", 8, "heads H", 1, 4096),
                      integer_option("feature_dim", 16,
                                     "width d' of a head's queries and keys, which have 1 + d' + d'(d'+1)/2 features",
                                     1, 64),
                      integer_option("value_dim", 64, "width d_v of a head's values", 1, 4096)},
          .context_parallel = ContextParallel::state,
          .limits = {},
          .create = create};
}

}  // namespace

const MixerType& based_mixer() {
  static const MixerType type = make_type();
  return type;
}

}  // namespace weft
