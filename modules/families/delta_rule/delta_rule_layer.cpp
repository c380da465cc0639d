#include "modules/families/delta_rule/delta_rule_layer.h"

#include <algorithm>
#include <cmath>

#include "autograd/ops/activation/activation.h"
#include "autograd/ops/cast/cast.h"
#include "autograd/ops/elementwise/elementwise.h"
#include "autograd/ops/gate/gate.h"
#include "autograd/ops/l2_norm/l2_norm.h"
#include "autograd/ops/linear/linear.h"
#include "autograd/ops/rms_norm/rms_norm.h"
#include "autograd/ops/short_conv/short_conv.h"
#include "autograd/transfer.h"

namespace weft {
namespace {

constexpr double kKeyNormEps = 1e-6;

}  // namespace

std::vector<OptionSpec> delta_rule_layer_options() {
  return {integer_option("heads", 8, "key heads H_K: heads of queries and keys", 1, 4096),
          integer_option("value_heads", 0,
                         "value heads H, a multiple of heads: states, decays and write strengths; 0 = heads", 0, 4096),
          integer_option("head_dim", 64, "width d_k of a head's queries and keys", 1, 4096),
          integer_option("value_dim", 0, "width d_v of a head's values; 0 = head_dim", 0, 4096),
          integer_option("conv_width", 4, "taps of the short convolutions of queries, keys and values; 0 = none", 0,
                         static_cast<double>(kMaxConvolutionTaps)),
          flag_option("negative_eigenvalues", false,
                      "write strengths up to 2, so that a write may reflect the state, not only erase"),
          later(real_option("norm_eps", 1e-5, "epsilon of the output norm", 1e-12, 1.0))};
}

DeltaRuleLayerConfig delta_rule_layer_config(const MixerSite& site, const Options& options, const std::string& where) {
  const std::int64_t heads = options.integer("heads");
  const std::int64_t value_heads = options.integer("value_heads") == 0 ? heads : options.integer("value_heads");
  if (value_heads % heads != 0) {
    config_error(
        "{}: value_heads = {} is no multiple of heads = {}; each key head serves equally many value heads, so use {} "
        "or "
        "another multiple",
        where, value_heads, heads, (value_heads / heads + 1) * heads);
  }
  const std::int64_t taps = options.integer("conv_width");
  if (taps == 1) {
    config_error("{}: conv_width = 1 mixes no tokens; use 0 for no convolutions, or 2 to {}", where,
                 kMaxConvolutionTaps);
  }
  const std::int64_t d_k = options.integer("head_dim");
  return {.site = site,
          .key_heads = heads,
          .value_heads = value_heads,
          .d_k = d_k,
          .d_v = options.integer("value_dim") == 0 ? d_k : options.integer("value_dim"),
          .taps = taps,
          .negative_eigenvalues = options.flag("negative_eigenvalues"),
          .norm_eps = options.real("norm_eps")};
}

DeltaRuleState::DeltaRuleState(const DeltaRuleLayerConfig& config, std::int64_t sequences, const Place& place)
    : matrices(place.zeros({sequences, config.value_heads, config.d_k, config.d_v}, accumulator_dtype(place.dtype))),
      place_(place) {
  if (config.taps == 0) return;
  const std::int64_t keys = config.key_heads * config.d_k, values = config.value_heads * config.d_v;
  conv_q = place.zeros({sequences, keys, config.taps - 1}, place.dtype);
  conv_k = place.zeros({sequences, keys, config.taps - 1}, place.dtype);
  conv_v = place.zeros({sequences, values, config.taps - 1}, place.dtype);
}

std::unique_ptr<MixerState> DeltaRuleState::clone() const {
  auto copy = std::make_unique<DeltaRuleState>(*this);
  for (Tensor* tensor : {&copy->matrices, &copy->conv_q, &copy->conv_k, &copy->conv_v})
    *tensor = to_memory(*tensor, place_.lasting, place_.stream);
  return copy;
}

std::size_t DeltaRuleState::bytes() const {
  std::size_t total = 0;
  for (const Tensor* tensor : {&matrices, &conv_q, &conv_k, &conv_v}) total += tensor->defined() ? tensor->nbytes() : 0;
  return total;
}

DeltaRuleLayer::DeltaRuleLayer(const ParameterScope& scope, const DeltaRuleLayerConfig& config) : config_(config) {
  const std::int64_t d = config.site.width;
  const std::int64_t keys = config.key_heads * config.d_k;
  const std::int64_t values = config.value_heads * config.d_v;
  const Init projection = Init::normal(0.02);
  wq_ = &scope.declare("wq", {keys, d}, ParameterKind::matrix, projection);
  wk_ = &scope.declare("wk", {keys, d}, ParameterKind::matrix, projection);
  wv_ = &scope.declare("wv", {values, d}, ParameterKind::matrix, projection);
  if (config.taps > 0) {
    const double bound = 1.0 / std::sqrt(static_cast<double>(config.taps));
    const Init filter = Init::uniform(-bound, bound);
    conv_q_ = &scope.declare("conv_q", {keys, config.taps}, ParameterKind::convolution, filter);
    conv_k_ = &scope.declare("conv_k", {keys, config.taps}, ParameterKind::convolution, filter);
    conv_v_ = &scope.declare("conv_v", {values, config.taps}, ParameterKind::convolution, filter);
  }
  wb_ = &scope.declare("wb", {config.value_heads, d}, ParameterKind::matrix, projection);
  if (config.gate != DeltaRuleLayerConfig::Gate::none) {
    if (config.gate_rank == 0) {
      wg_ = &scope.declare("wg", {values, d}, ParameterKind::matrix, projection);
    } else {
      wg_a_ = &scope.declare("wg_a", {config.gate_rank, d}, ParameterKind::matrix, projection);
      wg_b_ = &scope.declare("wg_b", {values, config.gate_rank}, ParameterKind::matrix, projection);
      if (config.gate_bias) bg_ = &scope.declare("bg", {values}, ParameterKind::vector, Init::constant(0.0));
    }
  }
  norm_w_ = &scope.declare("norm_w", {config.d_v}, ParameterKind::vector, Init::constant(1.0));
  wo_ = &scope.declare("wo", {d, values}, ParameterKind::matrix,
                       Init::normal(0.02 / std::sqrt(2.0 * static_cast<double>(config.site.layers))));
}

double DeltaRuleLayer::scale() const {
  return 1.0 / std::sqrt(static_cast<double>(config_.d_k));
}

// silu(conv(x weight^T)) [T, channels]; a state advances.
Var DeltaRuleLayer::convolved(Tape& tape, const Var& x, Parameter& weight, Parameter* taps,
                              const DocumentsPtr& documents, const Tensor& state) {
  const Var projected = linear(tape, x, tape.parameter(weight));
  if (taps == nullptr) return silu(tape, projected);
  return short_convolution(tape, projected, tape.parameter(*taps), documents, ConvolutionActivation::silu, state);
}

DeltaRuleLayer::Inputs DeltaRuleLayer::inputs(Tape& tape, const Var& x, const DocumentsPtr& documents,
                                              DeltaRuleState* state) {
  const std::int64_t T = x.dim(0);
  const Shape keys{T, config_.key_heads, config_.d_k};
  const auto tail = [&](Tensor DeltaRuleState::*of) { return state == nullptr ? Tensor{} : state->*of; };
  const Var q = convolved(tape, x, *wq_, conv_q_, documents, tail(&DeltaRuleState::conv_q)).reshape(keys);
  const Var k = convolved(tape, x, *wk_, conv_k_, documents, tail(&DeltaRuleState::conv_k)).reshape(keys);
  const Var v = convolved(tape, x, *wv_, conv_v_, documents, tail(&DeltaRuleState::conv_v));
  // Beside activations in bf16, decays and write strengths are f32.
  const auto exact = [&](const Var& value) {
    return value.value.defined() ? cast(tape, value, accumulator_dtype(x.dtype())) : value;
  };
  const Var strength = sigmoid(tape, exact(linear(tape, x, tape.parameter(*wb_))));
  return {.q = l2_norm(tape, q, kKeyNormEps),
          .k = l2_norm(tape, k, kKeyNormEps),
          .v = v.reshape({T, config_.value_heads, config_.d_v}),
          .g = exact(decay(tape, x)),
          .beta = config_.negative_eigenvalues ? weft::scale(tape, strength, 2.0) : strength};
}

// [T, H d_v], before its activation.
Var DeltaRuleLayer::output_gate(Tape& tape, const Var& x) {
  if (wg_ != nullptr) return linear(tape, x, tape.parameter(*wg_));
  const Var low = linear(tape, x, tape.parameter(*wg_a_));
  if (bg_ == nullptr) return linear(tape, low, tape.parameter(*wg_b_));
  return linear(tape, low, tape.parameter(*wg_b_), tape.parameter(*bg_));
}

// o [T, H, d_v] -> [T, d].
Var DeltaRuleLayer::output(Tape& tape, const Var& x, const Var& o) {
  using Gate = DeltaRuleLayerConfig::Gate;
  const Shape rows{x.dim(0), config_.value_heads * config_.d_v};
  const Var normed = rms_norm(tape, o, tape.parameter(*norm_w_), config_.norm_eps).reshape(rows);
  if (config_.gate == Gate::none) return linear(tape, normed, tape.parameter(*wo_));
  const Var gate = output_gate(tape, x);
  const Var gated = config_.gate == Gate::sigmoid ? sigmoid_gate(tape, normed, gate) : silu_gate(tape, normed, gate);
  return linear(tape, gated, tape.parameter(*wo_));
}

DeltaRuleState& DeltaRuleLayer::own(MixerState& state, std::int64_t sequences) const {
  auto* own_state = dynamic_cast<DeltaRuleState*>(&state);
  WEFT_CHECK(own_state != nullptr, "the state belongs to another kind of mixer");
  const Shape expected{sequences, config_.value_heads, config_.d_k, config_.d_v};
  WEFT_CHECK(own_state->matrices.shape() == expected, "state {}, expected {}", own_state->matrices.shape().str(),
             expected.str());
  return *own_state;
}

Var DeltaRuleLayer::forward(Tape& tape, const Var& x, const DocumentsPtr& documents, MixerState* state) {
  DeltaRuleState* carried = state == nullptr ? nullptr : &own(*state, documents->count());
  const Inputs in = inputs(tape, x, documents, carried);
  if (carried != nullptr && is_decoding_step(*documents)) {
    return output(tape, x,
                  Tape::constant(delta_rule_decode(tape, in.q.value, in.k.value, in.v.value, in.g.value, in.beta.value,
                                                   carried->matrices, scale())));
  }
  const Var initial = carried == nullptr ? Var{} : Tape::constant(carried->matrices);
  const auto [o, final_state] = delta_rule(tape, in.q, in.k, in.v, in.g, in.beta, initial, documents, scale());
  if (carried != nullptr) copy(carried->matrices, final_state.value, tape.stream());
  return output(tape, x, o);
}

std::unique_ptr<MixerState> DeltaRuleLayer::initial_state(std::int64_t sequences, const Place& place) const {
  return std::make_unique<DeltaRuleState>(config_, sequences, place);
}

// Matrix products of the layer; element-wise work is small beside them. Masked products and solves are counted by their
// triangle.
MixerCost DeltaRuleLayer::cost(std::int64_t tokens, std::int64_t document_length) const {
  const auto T = static_cast<double>(tokens);
  const auto d = static_cast<double>(config_.site.width);
  const auto H = static_cast<double>(config_.value_heads);
  const auto d_k = static_cast<double>(config_.d_k);
  const auto d_v = static_cast<double>(config_.d_v);
  const auto rank = static_cast<double>(config_.gate_rank);
  const bool gated = config_.gate != DeltaRuleLayerConfig::Gate::none;
  const double keys = static_cast<double>(config_.key_heads) * d_k;
  const double values = H * d_v;
  const double gate_weights = !gated ? 0.0 : rank == 0.0 ? d * values : rank * (d + values);
  const double weights = 2.0 * d * keys + 2.0 * d * values + d * H + gate_weights +
                         static_cast<double>(config_.taps) * (2.0 * keys + values) +
                         static_cast<double>(config_.decay_products);

  constexpr double kDiagonal = 16.0;  // half-filled blocks on the diagonal
  const auto C =
      static_cast<double>(std::min<std::int64_t>(delta_rule_chunk(), std::max<std::int64_t>(1, document_length)));
  const double triangle = C + kDiagonal;  // of one channel
  const double states = d_k * d_v;

  // Kept by the tape: x, projections, q and k before and after their norms with the inverse norms, v, beta and its
  // logit, o with its inverse norms, the normed o, the gate, the gated output.
  const double saved = d + (2.0 * keys + values) + 4.0 * keys + 2.0 * static_cast<double>(config_.key_heads) + values +
                       2.0 * H + values + H + values + (gated ? 2.0 * values + rank : 0.0) +
                       static_cast<double>(config_.decay_saved);
  return {.forward_flops = T * (2.0 * weights + H * (6.0 * states + 2.0 * triangle * (d_k + d_v))),
          // Entry states and updates are computed again.
          .backward_flops = T * (4.0 * weights + H * (18.0 * states + triangle * (7.0 * d_k + 6.0 * d_v))),
          // Weights once, what is kept written and read once, the result.
          .forward_bytes = 4.0 * (weights + T * (2.0 * saved + d)),
          .saved_bytes = 4.0 * T * saved};
}

double DeltaRuleLayer::state_bytes(std::int64_t) const {
  const std::int64_t channels = 2 * config_.key_heads * config_.d_k + config_.value_heads * config_.d_v;
  const std::int64_t tails = config_.taps == 0 ? 0 : channels * (config_.taps - 1);
  return 4.0 * static_cast<double>(config_.value_heads * config_.d_k * config_.d_v + tails);
}

}  // namespace weft
