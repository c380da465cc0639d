#include "modules/families/gated_linear/gated_linear_layer.h"

#include "autograd/ops/gate/gate.h"
#include "autograd/ops/linear/linear.h"
#include "autograd/ops/rms_norm/rms_norm.h"

namespace weft {
namespace {

using Norm = GatedLinearLayerConfig::Norm;
using Gate = GatedLinearLayerConfig::Gate;

GatedLinearSizes sizes(const GatedLinearLayerConfig& c) {
  const std::int64_t d = c.site.width, keys = c.heads * c.key_width(), values = c.heads * c.d_v;
  const bool full_gate = c.gate != Gate::none && c.gate_rank == 0;
  const std::int64_t gate_weights = full_gate ? d * values : c.gate_rank * (d + values);
  // x, the recurrence's inputs, o, its inverse norms, the normed o; the gate and the gated output.
  const std::int64_t norms = c.norm == Norm::per_head ? c.heads : 1;
  const std::int64_t gate_saved = c.gate == Gate::none ? 0 : 2 * values + c.gate_rank;
  return {.width = d,
          .heads = c.heads,
          .d_k = c.d_k,
          .d_v = c.d_v,
          .decay = c.decay,
          .weights = 2 * d * keys + 2 * d * values + gate_weights + c.extra_products,
          .saved = d + 2 * c.heads * c.d_k + 3 * values + norms + gate_saved + c.extra_saved};
}

}  // namespace

GatedLinearLayer::GatedLinearLayer(const ParameterScope& scope, const GatedLinearLayerConfig& config)
    : GatedLinearMixer(sizes(config)),
      config_(config),
      projections_(scope, config.site.width, config.heads, config.key_width(), config.d_v) {
  const std::int64_t d = config.site.width;
  const std::int64_t values = config.heads * config.d_v;
  const Init projection = Init::normal(0.02);
  if (config.gate_rank > 0) {
    wg_a_ = &scope.declare("wg_a", {config.gate_rank, d}, ParameterKind::matrix, projection);
    wg_b_ = &scope.declare("wg_b", {values, config.gate_rank}, ParameterKind::matrix, projection);
  } else if (config.gate != Gate::none) {
    wg_ = &scope.declare("wg", {values, d}, ParameterKind::matrix, projection);
  }
  if (config.norm == Norm::simple) {
    ones_ = constant<ConstantVector>(std::vector<double>(static_cast<std::size_t>(values), 1.0));
  } else {
    const std::int64_t norm_width = config.norm == Norm::joint ? values : config.d_v;
    norm_w_ = &scope.declare("norm_w", {norm_width}, ParameterKind::vector, Init::constant(1.0));
  }
  wo_ = &declare_output(scope, config.site, values);
}

// o [T, H, d_v] -> [T, H d_v]. The norm stands where a softmax has its denominator, so it comes before the gate.
Var GatedLinearLayer::normed(Tape& tape, const Var& o) const {
  const Shape flat{o.dim(0), config_.heads * config_.d_v};
  const Var weight = norm_w_ != nullptr ? tape.parameter(*norm_w_) : ones_->on(tape, o.dtype());
  return rms_norm(tape, config_.norm == Norm::per_head ? o : o.reshape(flat), weight).reshape(flat);
}

Var GatedLinearLayer::gated(Tape& tape, const Var& x, const Var& normed) const {
  if (config_.gate == Gate::none) return normed;
  const Var gate = wg_ != nullptr ? linear(tape, x, tape.parameter(*wg_))
                                  : linear(tape, linear(tape, x, tape.parameter(*wg_a_)), tape.parameter(*wg_b_));
  switch (config_.gate) {
    case Gate::sigmoid:
      return sigmoid_gate(tape, normed, gate);
    case Gate::silu:
      return silu_gate(tape, normed, gate);
    case Gate::linear:
    case Gate::none:
      break;
  }
  return linear_gate(tape, normed, gate);
}

Var GatedLinearLayer::mix(Tape& tape, const Var& x, const DocumentsPtr& documents, GatedLinearState* state) {
  const Inputs in = inputs(tape, x, projections_(tape, x), documents);
  const Var o = recurrence(tape, in, documents, state != nullptr ? state->parts[0] : Tensor{});
  return linear(tape, gated(tape, x, normed(tape, o)), tape.parameter(*wo_));
}

}  // namespace weft
