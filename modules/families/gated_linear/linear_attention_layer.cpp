#include "modules/families/gated_linear/linear_attention_layer.h"

#include "autograd/ops/linear/linear.h"
#include "modules/families/gated_linear/denominators.h"

namespace weft {
namespace {

GatedLinearSizes sizes(const LinearAttentionConfig& c) {
  const std::int64_t d = c.site.width, keys = c.heads * c.d_x, values = c.heads * c.d_v;
  return {.width = d,
          .heads = c.heads,
          .d_k = feature_width(c.map, c.d_x),
          .d_v = c.d_v + 1,
          .decay = DecayKind::constant,
          .weights = 2 * d * keys + 2 * d * values + c.extra_products,
          // x, q and k, the values with their ones, the sums, o.
          .saved = d + 2 * keys + 2 * (values + c.heads) + values + c.extra_saved,
          .carried = c.carried};
}

}  // namespace

LinearAttentionLayer::LinearAttentionLayer(const ParameterScope& scope, const LinearAttentionConfig& config)
    : GatedLinearMixer(sizes(config)),
      config_(config),
      no_decay_(constant<ConstantVector>(std::vector<double>(static_cast<std::size_t>(config.heads), 0.0))),
      projections_(scope, config.site.width, config.heads, config.d_x, config.d_v),
      wo_(&declare_output(scope, config.site, config.heads * config.d_v)) {}

Var LinearAttentionLayer::normalised(Tape& tape, const Var& sums, const Var&, const DocumentsPtr&, GatedLinearState*) {
  return divide_by_denominator(tape, sums);
}

Var LinearAttentionLayer::mix(Tape& tape, const Var& x, const DocumentsPtr& documents, GatedLinearState* state) {
  const Heads h = prepared(tape, projections_(tape, x), documents);
  const Var values = append_ones(tape, h.v);
  const Var sums =
      recurrence(tape, {.q = h.q, .k = h.k, .v = values, .decay = no_decay(tape, x.dtype()), .map = config_.map},
                 documents, state != nullptr ? state->parts[0] : Tensor{});
  const Var o = normalised(tape, sums, values, documents, state);
  return linear(tape, o.reshape({x.dim(0), config_.heads * config_.d_v}), tape.parameter(*wo_));
}

}  // namespace weft
