#include "modules/families/gated_linear/gated_linear_layer.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "autograd/ops/gate/gate.h"
#include "autograd/ops/linear/linear.h"
#include "autograd/ops/rms_norm/rms_norm.h"

namespace weft {

std::vector<OptionSpec> gated_linear_head_options() {
  return {{.key = "heads",
           .default_value = std::int64_t{8},
           .help = "heads H",
           .minimum = 1,
           .maximum = 4096,
           .choices = {}},
          {.key = "head_dim",
           .default_value = std::int64_t{64},
           .help = "width d_k of a head's queries and keys",
           .minimum = 1,
           .maximum = 4096,
           .choices = {}},
          {.key = "value_dim",
           .default_value = std::int64_t{0},
           .help = "width d_v of a head's values; 0 = head_dim",
           .minimum = 0,
           .maximum = 4096,
           .choices = {}}};
}

std::unique_ptr<MixerState> GatedLinearState::clone() const {
  Tensor copy = Tensor::empty(matrices.shape(), matrices.dtype());
  copy.copy_from(matrices);
  return std::make_unique<GatedLinearState>(copy);
}

ConstantDecay::ConstantDecay(const std::vector<double>& log_decays)
    : f64_(Tensor::from({static_cast<std::int64_t>(log_decays.size())}, log_decays)),
      f32_(Tensor::empty(f64_.shape(), DType::f32)) {
  f32_.copy_from(f64_);
}

Var ConstantDecay::in(DType dtype) const {
  return Tape::constant(dtype == DType::f64 ? f64_ : f32_);
}

GatedLinearLayer::GatedLinearLayer(const ParameterScope& scope, const GatedLinearLayerConfig& config)
    : config_(config) {
  const std::int64_t d = config.site.width;
  const std::int64_t keys = config.heads * config.d_k;
  const std::int64_t values = config.heads * config.d_v;
  const Init projection = Init::normal(0.02);
  wq_ = &scope.declare("wq", {keys, d}, ParameterKind::matrix, projection);
  wk_ = &scope.declare("wk", {keys, d}, ParameterKind::matrix, projection);
  wv_ = &scope.declare("wv", {values, d}, ParameterKind::matrix, projection);
  if (config.gate_rank == 0) {
    wg_ = &scope.declare("wg", {values, d}, ParameterKind::matrix, projection);
  } else {
    wg_a_ = &scope.declare("wg_a", {config.gate_rank, d}, ParameterKind::matrix, projection);
    wg_b_ = &scope.declare("wg_b", {values, config.gate_rank}, ParameterKind::matrix, projection);
  }
  const std::int64_t norm_width = config.norm == GatedLinearLayerConfig::Norm::joint ? values : config.d_v;
  norm_w_ = &scope.declare("norm_w", {norm_width}, ParameterKind::vector, Init::constant(1.0));
  wo_ = &scope.declare("wo", {d, values}, ParameterKind::matrix,
                       Init::normal(0.02 / std::sqrt(2.0 * static_cast<double>(config.site.layers))));
}

GatedLinearLayer::Heads GatedLinearLayer::project(Tape& tape, const Var& x, const DocumentsPtr& documents) {
  const std::int64_t T = x.dim(0);
  const auto heads = [&](Parameter& w, std::int64_t width) {
    return linear(tape, x, tape.parameter(w)).reshape({T, config_.heads, width});
  };
  return features(tape, {heads(*wq_, config_.d_k), heads(*wk_, config_.d_k), heads(*wv_, config_.d_v)}, documents);
}

// o [T, H, d_v] -> [T, d]. The norm stands where a softmax has its denominator, so it comes before the gate.
Var GatedLinearLayer::output(Tape& tape, const Var& x, const Var& o) {
  const Shape flat{x.dim(0), config_.heads * config_.d_v};
  const bool joint = config_.norm == GatedLinearLayerConfig::Norm::joint;
  const Var normed = rms_norm(tape, joint ? o.reshape(flat) : o, tape.parameter(*norm_w_)).reshape(flat);
  const Var gate = wg_ != nullptr ? linear(tape, x, tape.parameter(*wg_))
                                  : linear(tape, linear(tape, x, tape.parameter(*wg_a_)), tape.parameter(*wg_b_));
  const bool sigmoid = config_.gate == GatedLinearLayerConfig::Gate::sigmoid;
  const Var gated = sigmoid ? sigmoid_gate(tape, normed, gate) : silu_gate(tape, normed, gate);
  return linear(tape, gated, tape.parameter(*wo_));
}

Tensor& GatedLinearLayer::matrices(MixerState& state, std::int64_t sequences) const {
  auto* own = dynamic_cast<GatedLinearState*>(&state);
  WEFT_CHECK(own != nullptr, "the state belongs to another kind of mixer");
  const Shape expected{sequences, config_.heads, config_.d_k, config_.d_v};
  WEFT_CHECK(own->matrices.shape() == expected, "state {}, expected {}", own->matrices.shape().str(), expected.str());
  return own->matrices;
}

Var GatedLinearLayer::forward(Tape& tape, const Var& x, const DocumentsPtr& documents, MixerState* state) {
  const Heads h = project(tape, x, documents);
  Var initial;
  if (state != nullptr) initial = Tape::constant(matrices(*state, documents->count()));
  const auto [o, final_state] = gated_linear(tape, h.q, h.k, h.v, decay(tape, x), initial, documents, config_.scale);
  if (state != nullptr) initial.value.copy_from(final_state.value);
  return output(tape, x, o);
}

Tensor GatedLinearLayer::decode(Tape& tape, const Tensor& x, std::span<const std::int32_t> positions,
                                MixerState& state) {
  const std::int64_t N = x.dim(0);
  WEFT_CHECK(static_cast<std::int64_t>(positions.size()) == N, "{} positions for {} sequences", positions.size(), N);
  std::vector<std::int32_t> offsets(static_cast<std::size_t>(N) + 1);
  std::iota(offsets.begin(), offsets.end(), 0);
  const auto documents = std::make_shared<const Documents>(
      std::move(offsets), std::vector<std::int32_t>(positions.begin(), positions.end()));
  const Var input = Tape::constant(x);
  const Heads h = project(tape, input, documents);
  const Tensor o = gated_linear_decode(tape, h.q.value, h.k.value, h.v.value, decay(tape, input).value,
                                       matrices(state, N), config_.scale);
  return output(tape, input, Tape::constant(o)).value;
}

std::unique_ptr<MixerState> GatedLinearLayer::initial_state(std::int64_t sequences, DType dtype) const {
  return std::make_unique<GatedLinearState>(Tensor::zeros({sequences, config_.heads, config_.d_k, config_.d_v}, dtype));
}

// Matrix products of the layer; element-wise work is small beside them. Masked products are counted by their triangle.
MixerCost GatedLinearLayer::cost(std::int64_t tokens, std::int64_t document_length) const {
  const auto T = static_cast<double>(tokens);
  const auto d = static_cast<double>(config_.site.width);
  const auto H = static_cast<double>(config_.heads);
  const auto d_k = static_cast<double>(config_.d_k);
  const auto d_v = static_cast<double>(config_.d_v);
  const auto rank = static_cast<double>(config_.gate_rank);
  const double gate_weights = rank == 0.0 ? d * H * d_v : rank * (d + H * d_v);
  const double weights =
      2.0 * d * H * d_k + 2.0 * d * H * d_v + gate_weights + static_cast<double>(config_.extra_products);

  constexpr double kDiagonal = 16.0;  // half-filled blocks on the diagonal
  const auto C = static_cast<double>(
      std::min<std::int64_t>(gated_linear_chunk(config_.decay), std::max<std::int64_t>(1, document_length)));
  const double masked = (C + kDiagonal) * (d_k + d_v);
  const double states = d_k * d_v;

  // Kept by the tape: x, the recurrence's inputs, o and its inverse norms, the normed o, the gate, the gated output.
  const double norms = config_.norm == GatedLinearLayerConfig::Norm::joint ? 1.0 : H;
  const double saved =
      d + H * (2.0 * d_k + d_v) + norms + 4.0 * H * d_v + rank + static_cast<double>(config_.extra_saved);
  return {.forward_flops = T * (2.0 * weights + H * (4.0 * states + masked)),
          .backward_flops = T * (4.0 * weights + H * (10.0 * states + 2.5 * masked)),
          // Weights once, what is kept written and read once, the result.
          .forward_bytes = 4.0 * (weights + T * (2.0 * saved + d)),
          .saved_bytes = 4.0 * T * saved};
}

double GatedLinearLayer::state_bytes(std::int64_t) const {
  return 4.0 * static_cast<double>(config_.heads * config_.d_k * config_.d_v);
}

}  // namespace weft
