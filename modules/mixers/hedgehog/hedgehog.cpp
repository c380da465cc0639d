#include "modules/mixers/hedgehog/hedgehog.h"

#include <optional>

#include "autograd/ops/elementwise/elementwise.h"
#include "autograd/ops/head_linear/head_linear.h"
#include "autograd/ops/rope/rope.h"
#include "modules/families/gated_linear/linear_attention_layer.h"

namespace weft {
namespace {

class Hedgehog final : public LinearAttentionLayer {
 public:
  // rope_base 0: no rotation.
  Hedgehog(const ParameterScope& scope, const LinearAttentionConfig& config, double rope_base)
      : LinearAttentionLayer(scope, config) {
    const Shape shape{config.heads, config.d_x, config.d_x};
    map_q_ = &scope.declare("map_q", shape, ParameterKind::matrix, Init::constant(0.0));
    map_k_ = &scope.declare("map_k", shape, ParameterKind::matrix, Init::constant(0.0));
    if (rope_base > 0.0) rotation_.emplace(RopeConfig{.rotary_dim = config.d_x, .base = rope_base});
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
  std::optional<RopeTable> rotation_;
};

std::unique_ptr<Mixer> create(const ParameterScope& scope, const MixerSite& site, const Options& options,
                              const std::string& where) {
  const std::int64_t heads = options.integer("heads");
  const std::int64_t d_x = options.integer("head_dim");
  const double base = options.real("rope_base");
  if (base > 0.0 && d_x % 2 != 0) {
    config_error("{}: head_dim = {} is odd; the rotation turns pairs of channels (rope_base = 0 turns it off)", where,
                 d_x);
  }
  if (base > 0.0 && base < 1.0) {
    config_error("{}: rope_base = {} must be at least 1, or 0 for no rotation", where, base);
  }
  const LinearAttentionConfig config{.site = site,
                                     .heads = heads,
                                     .d_x = d_x,
                                     .d_v = options.integer("value_dim") == 0 ? d_x : options.integer("value_dim"),
                                     .map = FeatureMap::softmax_pair,
                                     .extra_products = 2 * heads * d_x * d_x,
                                     .extra_saved = 2 * heads * d_x};  // queries and keys before their maps
  return std::make_unique<Hedgehog>(scope, config, base);
}

MixerType make_type() {
  MixerType type{.name = "hedgehog",
                 .summary = "linear attention on learned features that imitate a softmax (Hedgehog)",
                 .options = gated_linear_head_options(),
                 .context_parallel = ContextParallel::state,
                 .limits = {},
                 .create = create};
  type.options.push_back(
      {.key = "rope_base",
       .default_value = 10000.0,
       .help = "base of the frequencies that turn queries and keys before their maps; 0 = no rotation",
       .minimum = 0.0,
       .maximum = 1e12,
       .choices = {}});
  return type;
}

}  // namespace

const MixerType& hedgehog_mixer() {
  static const MixerType type = make_type();
  return type;
}

}  // namespace weft
