#include "modules/mixers/hedgehog/hedgehog.h"

#include <optional>

#include "autograd/ops/elementwise/elementwise.h"
#include "autograd/ops/head_linear/head_linear.h"
#include "autograd/ops/rope/rope.h"
#include "modules/families/gated_linear/linear_attention_layer.h"
#include "modules/rope_options.h"

namespace weft {
namespace {

class Hedgehog final : public LinearAttentionLayer {
 public:
  Hedgehog(const ParameterScope& scope, const LinearAttentionConfig& config, const std::optional<RopeConfig>& rotation)
      : LinearAttentionLayer(scope, config) {
    const Shape shape{config.heads, config.d_x, config.d_x};
    map_q_ = &scope.declare("map_q", shape, ParameterKind::matrix, Init::constant(0.0));
    map_k_ = &scope.declare("map_k", shape, ParameterKind::matrix, Init::constant(0.0));
    if (rotation) rotation_ = constant<RopeTable>(*rotation);
  }

 private:
  Heads prepared(Tape& tape, const Heads& h, const DocumentsPtr& documents) override {
    // x (1 + M)^T: what is trained is the distance from the identity.
    const auto mapped = [&](const Var& x, Parameter* map) {
      const Var turned = rotation_ ? rope(tape, x, documents, *rotation_) : x;
      return add(tape, turned, head_linear(tape, turned, tape.parameter(*map)));
    };
    return {mapped(h.q, map_q_), mapped(h.k, map_k_), h.v};
  }

  Parameter *map_q_, *map_k_;
  std::shared_ptr<const RopeTable> rotation_;
};

std::unique_ptr<Mixer> create(const ParameterScope& scope, const MixerSite& site, const Options& options,
                              const std::string& where) {
  const std::int64_t heads = options.integer("heads");
  const std::int64_t d_x = options.integer("head_dim");
  const std::optional<RopeConfig> rotation = rope_from(options, "head_dim", d_x, where);
  const LinearAttentionConfig config{.site = site,
                                     .heads = heads,
                                     .d_x = d_x,
                                     .d_v = options.integer("value_dim") == 0 ? d_x : options.integer("value_dim"),
                                     .map = FeatureMap::softmax_pair,
                                     .extra_products = 2 * heads * d_x * d_x,
                                     .extra_saved = 2 * heads * d_x};  // queries and keys before their maps
  return std::make_unique<Hedgehog>(scope, config, rotation);
}

MixerType make_type() {
  MixerType type{.name = "hedgehog",
                 .summary = "linear attention on learned features that imitate a softmax (Hedgehog)",
                 .options = gated_linear_head_options(),
                 .context_parallel = ContextParallel::state,
                 .limits = {},
                 .create = create};
  type.options.push_back(
      rope_option("rotary positions of queries and keys before their maps; false = no position encoding"));
  type.options.push_back(rope_base_option());
  return type;
}

}  // namespace

const MixerType& hedgehog_mixer() {
  static const MixerType type = make_type();
  return type;
}

}  // namespace weft
