#include "modules/mixers/swa_ttt/swa_ttt.h"

#include <cmath>

#include "autograd/ops/activation/activation.h"
#include "autograd/ops/elementwise/elementwise.h"
#include "autograd/ops/gate/gate.h"
#include "autograd/ops/l2_norm/l2_norm.h"
#include "autograd/ops/linear/linear.h"
#include "autograd/ops/repeat_heads/repeat_heads.h"
#include "autograd/ops/rms_norm/rms_norm.h"
#include "modules/families/attention/key_value_cache.h"
#include "modules/mixers/swa_ttt/swa_ttt_options.h"

namespace weft {
namespace {

class SwaTttState final : public MixerState {
 public:
  SwaTttState(KeyValueCache cache_, FastWeightState memory_) : cache(std::move(cache_)), memory(std::move(memory_)) {}
  std::unique_ptr<MixerState> clone() const override { return std::make_unique<SwaTttState>(cache, memory); }
  std::size_t bytes() const override { return cache.bytes() + memory.bytes(); }

  KeyValueCache cache;
  FastWeightState memory;
};

class SwaTtt final : public Mixer {
 public:
  SwaTtt(const ParameterScope& scope, const SwaTttConfig& config) : c_(config) {
    declare_attention(scope);
    declare_memory(scope);
    if (c_.rope) rope_ = constant<RopeTable>(*c_.rope);
  }

  Var forward(Tape& tape, const Var& x, const DocumentsPtr& documents, MixerState* state) override {
    SwaTttState* own = state == nullptr ? nullptr : &state_of(tape, *state);
    const Heads h = attention_heads(tape, x);
    const Var o = attend(tape, h, documents, own);
    const Var m = rms_norm(tape, remember(tape, x, h, documents, own), tape.parameter(*norm_m_));
    const auto joined = [&](const Var& heads) {
      return linear(tape, heads.reshape({x.dim(0), c_.query_width()}), tape.parameter(*wo_));
    };
    if (c_.gate == MemoryGate::head) {
      const Var gated = silu_gate(tape, m, linear(tape, x, tape.parameter(*w_s_)));
      return joined(add(tape, o, gated.reshape(o.shape())));
    }
    const Var from_memory = linear(tape, m.reshape({x.dim(0), c_.memory_width()}), tape.parameter(*wo_m_));
    return add(tape, joined(o), mul_row(tape, from_memory, tape.parameter(*alpha_)));
  }

  std::unique_ptr<MixerState> initial_state(std::int64_t sequences, const Place& place) const override {
    return std::make_unique<SwaTttState>(
        KeyValueCache(sequences, c_.kv_heads, c_.head_dim, c_.head_dim, c_.attention, place),
        FastWeightState(sequences, w0_->value, w1_->value, w2_->value, c_.memory.chunk, place));
  }

  MixerCost cost(std::int64_t tokens, std::int64_t document_length) const override;

  double state_bytes(std::int64_t length) const override {
    return KeyValueCache::bytes_for(length, c_.kv_heads, c_.head_dim, c_.head_dim, c_.attention, DType::f32) +
           FastWeightState::bytes_for(c_.memory_heads, c_.memory_dim, c_.memory_hidden, c_.memory.chunk, DType::f32);
  }

 private:
  // The attention's, before rotation: q [T, H_Q, D], k and v [T, H_KV, D].
  struct Heads {
    Var q, k, v;
  };

  void declare_attention(const ParameterScope& scope);
  void declare_memory(const ParameterScope& scope);

  static SwaTttState& state_of(const Tape& tape, MixerState& state) {
    WEFT_CHECK(!tape.recording(), "swa_ttt: continuing from a state is inference only");
    auto* own = dynamic_cast<SwaTttState*>(&state);
    WEFT_CHECK(own != nullptr, "swa_ttt: the state of another mixer");
    return *own;
  }

  Heads attention_heads(Tape& tape, const Var& x) const {
    const auto project = [&](Parameter& weight, std::int64_t heads, Parameter* norm_w) {
      const Var y = linear(tape, x, tape.parameter(weight)).reshape({x.dim(0), heads, c_.head_dim});
      return norm_w == nullptr ? y : rms_norm(tape, y, tape.parameter(*norm_w));
    };
    return {project(*wq_, c_.heads, q_norm_w_), project(*wk_, c_.kv_heads, k_norm_w_),
            project(*wv_, c_.kv_heads, nullptr)};
  }

  // o [T, H_Q, D]
  Var attend(Tape& tape, const Heads& h, const DocumentsPtr& documents, SwaTttState* state) const {
    const Var q = rope_ ? rope(tape, h.q, documents, *rope_) : h.q;
    const Var k = rope_ ? rope(tape, h.k, documents, *rope_) : h.k;
    const Var sink = sink_logit_ == nullptr ? Var{} : tape.parameter(*sink_logit_);
    if (state == nullptr) return attention(tape, q, k, h.v, sink, documents, c_.attention);
    return Tape::constant(
        attention_cached(tape, q.value, k.value, h.v.value, sink.value, *documents, c_.attention, state->cache));
  }

  // What the memory answers, [T, H_m, d_m].
  Var remember(Tape& tape, const Var& x, const Heads& h, const DocumentsPtr& documents, SwaTttState* state) const {
    const FastWeightInputs in{.q = feature(tape, memory_rows(tape, x, h.q, wq_m_), *s_q_, *t_q_),
                              .k = feature(tape, memory_rows(tape, x, h.k, wk_m_), *s_k_, *t_k_),
                              .v = values(tape, memory_rows(tape, x, h.v, wv_m_)),
                              .eta = rates(tape, x),
                              .mu = c_.momentum ? fraction(tape, x, *w_mu_, *b_mu_) : Var{},
                              .lambda = c_.forget ? fraction(tape, x, *w_lambda_, *b_lambda_) : Var{},
                              .w0 = tape.parameter(*w0_),
                              .w1 = tape.parameter(*w1_),
                              .w2 = tape.parameter(*w2_)};
    if (state == nullptr) return fast_weight_memory(tape, in, documents, c_.memory);
    return Tape::constant(fast_weight_continue(tape, in, *documents, c_.memory, state->memory));
  }

  // [T, H_m d_m]: a projection of x, or the attention's, a key head for every query head.
  Var memory_rows(Tape& tape, const Var& x, const Var& heads, Parameter* weight) const {
    if (weight != nullptr) return linear(tape, x, tape.parameter(*weight));
    return repeat_heads(tape, heads, c_.heads).reshape({x.dim(0), c_.memory_width()});
  }
  Var by_head(const Var& rows) const { return rows.reshape({rows.dim(0), c_.memory_heads, c_.memory_dim}); }

  // L2(silu(s * rows + t))
  Var feature(Tape& tape, const Var& rows, Parameter& s, Parameter& t) const {
    const Var affine = add_row(tape, mul_row(tape, rows, tape.parameter(s)), tape.parameter(t));
    return l2_norm(tape, by_head(silu(tape, affine)));
  }
  Var values(Tape& tape, Var rows) const {
    if (c_.value_silu) rows = silu(tape, rows);
    if (!c_.value_norm) return by_head(rows);
    // RMS norm: sqrt(d_m) x / sqrt(sum of squares + d_m eps)
    const auto d_m = static_cast<double>(c_.memory_dim);
    return scale(tape, l2_norm(tape, by_head(rows), d_m * 1e-6), std::sqrt(d_m));
  }
  Var rates(Tape& tape, const Var& x) const {
    const Var logits = rate_logits(tape, x, *w_eta_, *b_eta_);
    const Var eta = c_.eta_max > 0.0 ? scale(tape, sigmoid(tape, logits), c_.eta_max) : softplus(tape, logits);
    return eta.reshape({x.dim(0), c_.memory_heads, 3});
  }
  static Var fraction(Tape& tape, const Var& x, Parameter& weight, Parameter& bias) {
    return sigmoid(tape, rate_logits(tape, x, weight, bias));
  }
  // In the type of the memory's arithmetic.
  static Var rate_logits(Tape& tape, const Var& x, Parameter& weight, Parameter& bias) {
    return linear_unrounded(tape, x, tape.parameter(weight), tape.parameter(bias));
  }

  SwaTttConfig c_;
  Parameter *wq_, *wk_, *wv_, *wo_;
  Parameter *q_norm_w_ = nullptr, *k_norm_w_ = nullptr, *sink_logit_ = nullptr;
  Parameter *wq_m_ = nullptr, *wk_m_ = nullptr, *wv_m_ = nullptr;  // null: shared
  Parameter *s_q_, *t_q_, *s_k_, *t_k_;
  Parameter *w0_, *w1_, *w2_;
  Parameter *w_eta_, *b_eta_, *w_mu_ = nullptr, *b_mu_ = nullptr, *w_lambda_ = nullptr, *b_lambda_ = nullptr;
  Parameter* norm_m_;
  Parameter *alpha_ = nullptr, *wo_m_ = nullptr;  // channel gate
  Parameter* w_s_ = nullptr;                      // head gate
  std::shared_ptr<const RopeTable> rope_;
};

Parameter* declare_matrix(const ParameterScope& scope, const char* name, std::int64_t out, std::int64_t in,
                          double deviation = 0.02) {
  return &scope.declare(name, {out, in}, ParameterKind::matrix, Init::normal(deviation));
}
Parameter* declare_vector(const ParameterScope& scope, const char* name, std::int64_t n, double value) {
  return &scope.declare(name, {n}, ParameterKind::vector, Init::constant(value));
}
double output_deviation(std::int64_t layers) {
  return 0.02 / std::sqrt(2.0 * static_cast<double>(layers));
}
double inverse_sigmoid(double p) {
  return std::log(p / (1.0 - p));
}
double inverse_softplus(double y) {
  return y + std::log(-std::expm1(-y));
}

void SwaTtt::declare_attention(const ParameterScope& scope) {
  wq_ = declare_matrix(scope, "wq", c_.query_width(), c_.width);
  wk_ = declare_matrix(scope, "wk", c_.key_width(), c_.width);
  wv_ = declare_matrix(scope, "wv", c_.key_width(), c_.width);
  if (c_.qk_norm) {
    q_norm_w_ = declare_vector(scope, "q_norm_w", c_.head_dim, 1.0);
    k_norm_w_ = declare_vector(scope, "k_norm_w", c_.head_dim, 1.0);
  }
  if (c_.sink_logit) sink_logit_ = declare_vector(scope, "sink_logit", c_.heads, 0.0);
  wo_ = declare_matrix(scope, "wo", c_.width, c_.query_width(), output_deviation(c_.layers));
}

void SwaTtt::declare_memory(const ParameterScope& scope) {
  const std::int64_t H = c_.memory_heads, d_m = c_.memory_dim, d_h = c_.memory_hidden, rows = H * d_m;
  if (!c_.shared) {
    wq_m_ = declare_matrix(scope, "wq_m", rows, c_.width);
    wk_m_ = declare_matrix(scope, "wk_m", rows, c_.width);
    wv_m_ = declare_matrix(scope, "wv_m", rows, c_.width);
  }
  s_q_ = declare_vector(scope, "s_q", rows, 1.0);
  t_q_ = declare_vector(scope, "t_q", rows, 0.0);
  s_k_ = declare_vector(scope, "s_k", rows, 1.0);
  t_k_ = declare_vector(scope, "t_k", rows, 0.0);
  const auto fast = [&](const char* name, std::int64_t out, std::int64_t in) {
    return &scope.declare(name, {H, out, in}, ParameterKind::fast_weight,
                          Init::normal(1.0 / std::sqrt(static_cast<double>(in))));
  };
  w0_ = fast("w0", d_h, d_m);
  w1_ = fast("w1", d_m, d_h);
  w2_ = fast("w2", d_h, d_m);
  const double first_rate =
      c_.eta_max > 0.0 ? inverse_sigmoid(c_.eta_init / c_.eta_max) : inverse_softplus(c_.eta_init);
  w_eta_ = declare_matrix(scope, "w_eta", 3 * H, c_.width);
  b_eta_ = declare_vector(scope, "b_eta", 3 * H, first_rate);
  if (c_.momentum) {
    w_mu_ = declare_matrix(scope, "w_mu", H, c_.width);
    b_mu_ = declare_vector(scope, "b_mu", H, 0.0);
  }
  if (c_.forget) {
    w_lambda_ = declare_matrix(scope, "w_lambda", H, c_.width);
    b_lambda_ = declare_vector(scope, "b_lambda", H, inverse_sigmoid(c_.forget_init));
  }
  norm_m_ = declare_vector(scope, "norm_m", d_m, 1.0);
  if (c_.gate == MemoryGate::head) {
    w_s_ = declare_matrix(scope, "w_s", H, c_.width);
  } else {
    alpha_ = declare_vector(scope, "alpha", c_.width, c_.alpha_init);
    wo_m_ = declare_matrix(scope, "wo_m", c_.width, rows, output_deviation(c_.layers));
  }
}

MixerCost SwaTtt::cost(std::int64_t tokens, std::int64_t document_length) const {
  const auto T = static_cast<double>(tokens);
  const auto d = static_cast<double>(c_.width);
  const auto q = static_cast<double>(c_.query_width());
  const auto k = static_cast<double>(c_.key_width());
  const auto m = static_cast<double>(c_.memory_width());
  const auto H = static_cast<double>(c_.memory_heads);
  const bool channel = c_.gate == MemoryGate::channel;
  const double gates = H * (3.0 + (c_.momentum ? 1.0 : 0.0) + (c_.forget ? 1.0 : 0.0));
  const double weights = d * (2.0 * q + 2.0 * k + (c_.shared ? 0.0 : 3.0 * m) + gates + (channel ? m : H));

  const double documents = document_length > 0 ? T / static_cast<double>(document_length) : 0.0;
  const double pairs = documents * attention_pairs(*Documents::single(document_length), c_.attention);
  const double scores = 4.0 * q * pairs;
  const FastWeightCost memory =
      fast_weight_cost(c_.memory, tokens, document_length, c_.memory_heads, c_.memory_dim, c_.memory_hidden);

  // Kept by the tape. Attention: x, q, k, v, o, the softmax denominators, and what is normalised, with its norms.
  const auto heads = static_cast<double>(c_.heads);
  double saved = d + 2.0 * q + 2.0 * k + heads;
  if (c_.qk_norm) saved += q + k + heads + static_cast<double>(c_.kv_heads);
  // Memory: queries and keys at four stages (the first may be what the attention keeps), values at up to three, rates
  // before and after their activation, the answer before and after its norm.
  const double copied = c_.kv_heads == c_.heads ? 0.0 : m;
  const double first = c_.rope ? m : 0.0;
  saved += 2.0 * (3.0 * m + H) + (c_.shared ? first + std::max(first, copied) : 2.0 * m);
  saved += (c_.shared ? copied : m) + (c_.value_silu ? m : 0.0) + (c_.value_norm ? m + H : 0.0);
  saved += 2.0 * gates + 2.0 * m + H + (channel ? d : H + q);
  return {.forward_flops = 2.0 * T * weights + scores + memory.forward_flops,
          // Attention computes its scores again: five products a pair against two.
          .backward_flops = 4.0 * T * weights + 2.5 * scores + memory.backward_flops,
          // Weights once, what is kept written and read once, the result.
          .forward_bytes = 4.0 * (weights + T * (2.0 * saved + d)),
          .saved_bytes = 4.0 * T * saved};
}

std::unique_ptr<Mixer> create(const ParameterScope& scope, const MixerSite& site, const Options& options,
                              const std::string& where) {
  return std::make_unique<SwaTtt>(scope, swa_ttt_config(site, options, where));
}

}  // namespace

const MixerType& swa_ttt_mixer() {
  static const MixerType type{
      .name = "swa_ttt",
      .summary = "sliding-window attention beside a memory trained while it reads (AllMem, LaCT)",
      .options = swa_ttt_options(),
      .context_parallel = ContextParallel::state,
      .limits = {},
      .create = create};
  return type;
}

}  // namespace weft
