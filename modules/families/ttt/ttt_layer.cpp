#include "modules/families/ttt/ttt_layer.h"

#include <cmath>
#include <cstring>

#include "autograd/document_tables.h"
#include "autograd/ops/activation/activation.h"
#include "autograd/ops/cast/cast.h"
#include "autograd/ops/elementwise/elementwise.h"
#include "autograd/ops/gate/gate.h"
#include "autograd/ops/linear/linear.h"
#include "autograd/ops/rms_norm/rms_norm.h"
#include "autograd/ops/short_conv/short_conv.h"
#include "autograd/transfer.h"
#include "modules/head_options.h"
#include "modules/rope_options.h"

namespace weft {
namespace {

// The inner batches of the documents as documents of their own, so that a token's position is its place in its batch.
DocumentsPtr inner_batches(const Documents& documents, const std::vector<std::int32_t>& phase, std::int32_t b) {
  std::vector<std::int32_t> cu{0}, pos0;
  for (std::int64_t n = 0; n < documents.count(); ++n) {
    std::int32_t place = phase.empty() ? 0 : phase[static_cast<std::size_t>(n)];
    for (std::int32_t t = documents.begin(n); t < documents.end(n);) {
      pos0.push_back(place);
      t = std::min(documents.end(n), t + b - place);
      cu.push_back(t);
      place = 0;
    }
  }
  return std::make_shared<const Documents>(std::move(cu), std::move(pos0));
}

}  // namespace

std::vector<OptionSpec> ttt_layer_options(double learning_rate) {
  return {integer_option("heads", 4, "heads H", 1, 4096),
          integer_option("head_dim", 0, "width d_h of a head; 0 = width / heads", 0, 4096),
          integer_option("batch", 16, "tokens b of an inner batch: gradients are taken at the weights it starts with",
                         1, 4096),
          real_option("inner_learning_rate", learning_rate, "eta: a token's inner learning rate is eta sigma(.) / d_h",
                      0.0, 1e3),
          integer_option("conv_width", 4, "taps of the short convolutions of queries and keys, 2 to 8; 0 = none", 0,
                         static_cast<double>(kMaxConvolutionTaps)),
          rope_option("rotary positions of queries and keys inside an inner batch; false = none"),
          rope_base_option(),
          choice_option("gate", "gelu", "gate of the output from the layer's input", {"none", "gelu"})};
}

TttLayerConfig ttt_layer_config(const MixerSite& site, const Options& options, const std::string& where) {
  const std::int64_t heads = options.integer("heads");
  const std::int64_t head_dim = head_dim_from(site, options, where);
  if (head_dim < 2) {
    config_error(
        "{}: a head of width {} has nothing to learn, because its memory is normalised over the head; use at "
        "least 2",
        where, head_dim);
  }
  const double eta = options.real("inner_learning_rate");
  if (!(eta > 0.0)) {
    config_error("{}: inner_learning_rate = {} must be positive: a memory that does not learn is a fixed network",
                 where, eta);
  }
  const std::int64_t conv = options.integer("conv_width");
  if (conv == 1)
    config_error("{}: conv_width = 1 is no convolution; use 2 to {} taps, or 0", where, kMaxConvolutionTaps);
  using Gate = TttLayerConfig::Gate;
  return {.site = site,
          .heads = heads,
          .head_dim = head_dim,
          .hidden = 0,
          .batch = options.integer("batch"),
          .learning_rate = eta,
          .conv = conv,
          .gate = options.text("gate") == "gelu" ? Gate::gelu : Gate::none,
          .rope = rope_from(options, "head_dim", head_dim, where)};
}

TttState::TttState(Tensor memory_, Tensor conv_q_, Tensor conv_k_, const Place& place)
    : memory(std::move(memory_)),
      conv_q(std::move(conv_q_)),
      conv_k(std::move(conv_k_)),
      phase(static_cast<std::size_t>(memory.dim(0)), 0),
      place_(place) {}

std::unique_ptr<MixerState> TttState::clone() const {
  auto copy = std::make_unique<TttState>(to_memory(memory, place_.lasting, place_.stream),
                                         to_memory(conv_q, place_.lasting, place_.stream),
                                         to_memory(conv_k, place_.lasting, place_.stream), place_);
  copy->phase = phase;
  return copy;
}

std::size_t TttState::bytes() const {
  const std::size_t tails = conv_q.defined() ? conv_q.nbytes() + conv_k.nbytes() : 0;
  return memory.nbytes() + tails + phase.size() * sizeof(phase[0]);
}

TttLayer::TttLayer(const ParameterScope& scope, const TttLayerConfig& config) : c_(config) {
  const std::int64_t d = c_.site.width, H = c_.heads, d_h = c_.head_dim, m = c_.hidden;
  const auto matrix = [&](const char* name, std::int64_t out, std::int64_t in) {
    return &scope.declare(name, {out, in}, ParameterKind::matrix, Init::normal(0.02));
  };
  const auto vector = [&](const char* name, const Shape& shape, double value) {
    return &scope.declare(name, shape, ParameterKind::vector, Init::constant(value));
  };
  const auto memory = [&](const char* name, const Shape& shape, double deviation) {
    return &scope.declare(name, shape, ParameterKind::fast_weight, Init::normal(deviation));
  };
  wq_ = matrix("wq", inner_width(), d);
  wk_ = matrix("wk", inner_width(), d);
  wv_ = matrix("wv", inner_width(), d);
  if (c_.conv > 0) {
    const Init init = Init::normal(1.0 / std::sqrt(static_cast<double>(c_.conv)));
    conv_q_ = &scope.declare("conv_q", {inner_width(), c_.conv}, ParameterKind::convolution, init);
    conv_k_ = &scope.declare("conv_k", {inner_width(), c_.conv}, ParameterKind::convolution, init);
  }
  wr_ = matrix("wr", H, d);
  br_ = vector("br", {H}, 0.0);
  offset_ = vector("offset", {c_.batch}, 0.0);
  gamma_ = vector("gamma", {H, d_h}, 1.0);
  beta_ = vector("beta", {H, d_h}, 0.0);
  if (m > 0) {
    w1_ = memory("memory_w1", {H, d_h, m}, 0.02);
    b1_ = memory("memory_b1", {H, m}, 0.0);
  }
  w2_ = memory(m > 0 ? "memory_w2" : "memory_w", {H, m > 0 ? m : d_h, d_h}, 0.02);
  b2_ = memory(m > 0 ? "memory_b2" : "memory_b", {H, d_h}, 0.0);
  norm_w_ = vector("norm_w", {inner_width()}, 1.0);
  if (c_.gate == TttLayerConfig::Gate::gelu) wg_ = matrix("wg", inner_width(), d);
  wo_ = &scope.declare("wo", {d, inner_width()}, ParameterKind::matrix,
                       Init::normal(0.02 / std::sqrt(2.0 * static_cast<double>(c_.site.layers))));
  if (c_.rope) rope_ = constant<RopeTable>(*c_.rope);
}

TttLayer::Places TttLayer::places(const Tape& tape, const DocumentsPtr& documents,
                                  const std::vector<std::int32_t>& phase) const {
  if (!rope_) return {};
  const auto b = static_cast<std::int32_t>(c_.batch);
  if (tape.device().is_cpu() || !phase.empty()) return {inner_batches(*documents, phase, b), {}};
  const auto make = [b](const Documents& row, std::span<std::int32_t> place) {
    for (std::int64_t n = 0; n < row.count(); ++n) {
      for (std::int32_t t = row.begin(n); t < row.end(n); ++t)
        place[static_cast<std::size_t>(t)] = (t - row.begin(n)) % b;
    }
  };
  return {nullptr, documents->tables(tape.stream())
                       .numbers_of(*documents, fmt::format("places in batches of {}", b), documents->tokens(), make)};
}

Var TttLayer::features(Tape& tape, const Var& x, Parameter& weight, Parameter* filter, const DocumentsPtr& documents,
                       const Places& places, const Tensor& tail) const {
  Var y = linear(tape, x, tape.parameter(weight));
  if (filter != nullptr) {
    y = short_convolution(tape, y, tape.parameter(*filter), documents, ConvolutionActivation::none, tail);
  }
  y = y.reshape({x.dim(0), c_.heads, c_.head_dim});
  if (!rope_) return y;
  return places.table.defined() ? rope(tape, y, places.table, *rope_) : rope(tape, y, places.batches, *rope_);
}

Var TttLayer::forward(Tape& tape, const Var& x, const DocumentsPtr& documents, MixerState* state) {
  const std::int64_t T = x.dim(0);
  auto* own = dynamic_cast<TttState*>(state);
  WEFT_CHECK(state == nullptr || (own != nullptr && !tape.recording()),
             "ttt: continuing from a state is inference only, from a state of this mixer");
  WEFT_CHECK(own == nullptr || own->memory.dim(0) == documents->count(),
             "ttt: {} documents for a state of {} sequences", documents->count(),
             own == nullptr ? 0 : own->memory.dim(0));
  const std::vector<std::int32_t> phase = own == nullptr ? std::vector<std::int32_t>{} : own->phase;
  const Places at = places(tape, documents, phase);
  const auto optional = [&](Parameter* p) { return p == nullptr ? Var{} : tape.parameter(*p); };

  TttInputs in;
  in.q = features(tape, x, *wq_, conv_q_, documents, at, own == nullptr ? Tensor{} : own->conv_q);
  in.k = features(tape, x, *wk_, conv_k_, documents, at, own == nullptr ? Tensor{} : own->conv_k);
  in.v = linear(tape, x, tape.parameter(*wv_)).reshape(in.q.shape());
  const Var logits = linear_unrounded(tape, x, tape.parameter(*wr_), tape.parameter(*br_));
  in.rate = scale(tape, sigmoid(tape, logits), c_.learning_rate / static_cast<double>(c_.head_dim));
  in.offset = tape.parameter(*offset_);
  in.gamma = tape.parameter(*gamma_);
  in.beta = tape.parameter(*beta_);
  const TttWeights weights{optional(w1_), optional(b1_), tape.parameter(*w2_), tape.parameter(*b2_)};
  Var o;
  if (own == nullptr) {
    o = ttt_memory(tape, in, weights, documents, FinalState::skip).o;
  } else {
    const TttStart start{Tape::constant(own->memory), phase};
    const TttOutput out = ttt_memory(tape, in, weights, documents, FinalState::keep, &start);
    o = out.o;
    copy(own->memory, out.final_state.value, tape.stream());
    for (std::int64_t n = 0; n < documents->count(); ++n) {
      std::int32_t& place = own->phase[static_cast<std::size_t>(n)];
      place = (place + documents->length(n)) % static_cast<std::int32_t>(c_.batch);
    }
  }
  o = rms_norm(tape, o.reshape({T, inner_width()}), tape.parameter(*norm_w_));
  if (wg_ != nullptr) o = gelu_gate(tape, o, linear(tape, x, tape.parameter(*wg_)));
  return linear(tape, o, tape.parameter(*wo_));
}

std::unique_ptr<MixerState> TttLayer::initial_state(std::int64_t sequences, const Place& place) const {
  const std::int64_t H = c_.heads, P = ttt_memory_size(c_.head_dim, c_.hidden);
  const Tensor memory = place.zeros({sequences, H, 2 * P}, accumulator_dtype(place.dtype));
  Tape tape(place.arena, Tape::Mode::inference, place.stream);
  const Tensor flat = memory.reshape({sequences * H * 2 * P});
  std::int64_t at = 0;
  for (const Parameter* part : {w1_, b1_, w2_, b2_}) {
    if (part == nullptr) continue;
    const std::int64_t elements = part->value.numel() / H;
    const Tensor heads = cast(tape, Tape::constant(part->value), memory.dtype()).value.reshape({H * elements});
    for (std::int64_t i = 0; i < sequences * H; ++i) {
      const std::int64_t h = i % H;
      copy(flat.rows(i * 2 * P + at, i * 2 * P + at + elements), heads.rows(h * elements, (h + 1) * elements),
           place.stream);
    }
    at += elements;
  }
  const auto tail = [&] {
    return c_.conv > 0 ? place.zeros({sequences, inner_width(), c_.conv - 1}, place.dtype) : Tensor{};
  };
  return std::make_unique<TttState>(memory, tail(), tail(), place);
}

// Matrix products; element-wise work is small beside them. A layer of the memory, width to width, takes three products
// for training, reading and the update, and those of a batch's scores; a hidden layer one more for the gradient that
// passes it. Backward runs the chain of updates twice and the batch once before the products of the gradients.
MixerCost TttLayer::cost(std::int64_t tokens, std::int64_t document_length) const {
  const auto T = static_cast<double>(tokens);
  const auto d = static_cast<double>(c_.site.width);
  const auto H = static_cast<double>(c_.heads);
  const auto d_h = static_cast<double>(c_.head_dim);
  const auto m = static_cast<double>(c_.hidden);
  const auto b = static_cast<double>(std::min<std::int64_t>(c_.batch, std::max<std::int64_t>(1, document_length)));
  const double inner = H * d_h, gate = wg_ != nullptr ? inner : 0.0, taps = static_cast<double>(c_.conv);
  const double weights = d * (4.0 * inner + gate + H) + 2.0 * inner * taps;
  const double layers = m > 0.0 ? 2.0 * d_h * m : d_h * d_h;
  const double passed = m > 0.0 ? d_h * m : 0.0;
  const double scores = 2.0 * b * (m > 0.0 ? 2.0 * (d_h + m) : 2.0 * d_h);
  const double chain = 4.0 * layers + 2.0 * passed;
  const double forward = chain + 2.0 * layers + scores;
  const double backward = 2.0 * chain + forward + 12.0 * layers + 4.0 * passed + 2.0 * scores;

  // Kept by the tape: x, the convolutions' inputs, q, k, v, logits and rates, o and its inverse norm, the normed o, the
  // gate and the gated output.
  const double saved = d + (taps > 0.0 ? 2.0 * inner : 0.0) + 3.0 * inner + 2.0 * H + inner + 1.0 + inner + 2.0 * gate;
  return {.forward_flops = T * (2.0 * weights + H * forward),
          .backward_flops = T * (4.0 * weights + H * backward),
          .forward_bytes = 4.0 * (weights + T * (2.0 * saved + d)),
          .saved_bytes = 4.0 * T * saved};
}

double TttLayer::state_bytes(std::int64_t) const {
  const auto memory = static_cast<double>(c_.heads * 2 * ttt_memory_size(c_.head_dim, c_.hidden));
  const auto tails = static_cast<double>(c_.conv > 0 ? 2 * inner_width() * (c_.conv - 1) : 0);
  return 4.0 * (memory + tails + 1.0);
}

}  // namespace weft
