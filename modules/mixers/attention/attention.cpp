#include "modules/mixers/attention/attention.h"

#include <cmath>
#include <limits>
#include <optional>

#include "autograd/ops/gate/gate.h"
#include "autograd/ops/linear/linear.h"
#include "autograd/ops/norm_rope/norm_rope.h"
#include "autograd/ops/rms_norm/rms_norm.h"
#include "modules/families/attention/attention.h"
#include "modules/families/attention/key_value_cache.h"
#include "modules/head_options.h"
#include "modules/rope_options.h"

namespace weft {
namespace {

enum class Gate : std::uint8_t { none, elementwise, headwise };

struct Config {
  std::int64_t width, layers;
  std::int64_t heads, kv_heads, head_dim;
  AttentionOptions attention;
  bool sink_logit, qk_norm, bias, out_bias;
  double norm_eps;
  Gate gate;
  std::optional<RopeConfig> rope;
};

Gate gate_from(const std::string& name) {
  if (name == "elementwise") return Gate::elementwise;
  return name == "headwise" ? Gate::headwise : Gate::none;
}

std::optional<RopeConfig> partial_rope_from(const Options& options, std::int64_t head_dim, const std::string& where) {
  const double fraction = options.real("rope_fraction");
  if (fraction == 1.0) return scaled_rope_from(options, "head_dim", head_dim, where);
  const auto turned = 2 * static_cast<std::int64_t>(static_cast<double>(head_dim) * fraction / 2.0);
  if (options.flag("rope") && turned == 0) {
    config_error(
        "{}: rope_fraction = {} of head_dim = {} leaves no pair of channels to turn; raise it, or set rope = "
        "false",
        where, fraction, head_dim);
  }
  return scaled_rope_from(options, "head_dim", turned, where);
}

Config config_from(const MixerSite& site, const Options& options, const std::string& where) {
  const std::int64_t heads = options.integer("heads");
  const std::int64_t kv_heads = kv_heads_from(options, where);
  const std::int64_t head_dim = head_dim_from(site, options, where);
  const std::int64_t window = options.integer("window");
  const std::int64_t sinks = options.integer("sinks");
  if (sinks > 0 && window == 0) {
    config_error("{}: sinks = {} has no effect without window: full attention sees every token", where, sinks);
  }
  return {.width = site.width,
          .layers = site.layers,
          .heads = heads,
          .kv_heads = kv_heads,
          .head_dim = head_dim,
          .attention = {.window = static_cast<std::int32_t>(window),
                        .sink_tokens = static_cast<std::int32_t>(sinks),
                        .soft_cap = options.real("soft_cap")},
          .sink_logit = options.flag("sink_logit"),
          .qk_norm = options.flag("qk_norm"),
          .bias = options.flag("bias"),
          .out_bias = options.flag("out_bias"),
          .norm_eps = site.norm_eps,
          .gate = gate_from(options.text("gate")),
          .rope = partial_rope_from(options, head_dim, where)};
}

class AttentionState final : public MixerState {
 public:
  explicit AttentionState(KeyValueCache keys) : cache(std::move(keys)) {}
  std::unique_ptr<MixerState> clone() const override { return std::make_unique<AttentionState>(cache); }
  std::size_t bytes() const override { return cache.bytes(); }
  bool replayable() const override { return true; }
  bool make_room() override { return cache.make_room(); }
  void count_token() override { cache.count_token(); }

  KeyValueCache cache;
};

class AttentionMixer final : public Mixer {
 public:
  AttentionMixer(const ParameterScope& scope, const Config& config) : c_(config) {
    const std::int64_t query_width = c_.heads * c_.head_dim;
    const std::int64_t key_width = c_.kv_heads * c_.head_dim;
    const auto matrix = [&](const char* name, std::int64_t out, std::int64_t in, double deviation) {
      return &scope.declare(name, {out, in}, ParameterKind::matrix, Init::normal(deviation));
    };
    const auto vector = [&](const char* name, std::int64_t n, double value) {
      return &scope.declare(name, {n}, ParameterKind::vector, Init::constant(value));
    };
    wq_ = matrix("wq", query_width, c_.width, 0.02);
    wk_ = matrix("wk", key_width, c_.width, 0.02);
    wv_ = matrix("wv", key_width, c_.width, 0.02);
    if (c_.bias) {
      bq_ = vector("bq", query_width, 0.0);
      bk_ = vector("bk", key_width, 0.0);
      bv_ = vector("bv", key_width, 0.0);
    }
    if (c_.qk_norm) {
      q_norm_w_ = vector("q_norm_w", c_.head_dim, 1.0);
      k_norm_w_ = vector("k_norm_w", c_.head_dim, 1.0);
    }
    if (c_.sink_logit) sink_logit_ = vector("sink_logit", c_.heads, 0.0);
    if (c_.gate != Gate::none) wg_ = matrix("wg", gate_width(), c_.width, 0.02);
    wo_ = matrix("wo", c_.width, query_width, 0.02 / std::sqrt(2.0 * static_cast<double>(c_.layers)));
    if (c_.out_bias) bo_ = vector("bo", c_.width, 0.0);
    if (c_.rope) rope_ = constant<RopeTable>(*c_.rope);
  }

  Var forward(Tape& tape, const Var& x, const DocumentsPtr& documents, MixerState* state) override {
    const std::int64_t T = x.dim(0);
    const Var q = rotated(tape, documents, heads_of(tape, x, *wq_, bq_, c_.heads), q_norm_w_);
    const Var k = rotated(tape, documents, heads_of(tape, x, *wk_, bk_, c_.kv_heads), k_norm_w_);
    const Var v = heads_of(tape, x, *wv_, bv_, c_.kv_heads);
    const Var sink = sink_logit_ == nullptr ? Var{} : tape.parameter(*sink_logit_);
    Var o = state == nullptr ? attention(tape, q, k, v, sink, documents, c_.attention)
                             : Tape::constant(attention_cached(tape, q.value, k.value, v.value, sink.value, *documents,
                                                               c_.attention, cache_of(tape, *state)));
    if (c_.gate != Gate::none) {
      const Var g = linear(tape, x, tape.parameter(*wg_));
      o = sigmoid_gate(tape, o, c_.gate == Gate::headwise ? g : g.reshape(o.shape()));
    }
    return projected(tape, o.reshape({T, c_.heads * c_.head_dim}), *wo_, bo_);
  }

  std::unique_ptr<MixerState> initial_state(std::int64_t sequences, const Place& place) const override {
    return std::make_unique<AttentionState>(
        KeyValueCache(sequences, c_.kv_heads, c_.head_dim, c_.head_dim, c_.attention, place));
  }

  MixerCost cost(std::int64_t tokens, std::int64_t document_length) const override {
    const auto T = static_cast<double>(tokens);
    const auto d = static_cast<double>(c_.width);
    const auto q = static_cast<double>(c_.heads * c_.head_dim);
    const auto k = static_cast<double>(c_.kv_heads * c_.head_dim);
    const auto g = static_cast<double>(c_.gate == Gate::none ? 0 : gate_width());
    const double documents = document_length > 0 ? T / static_cast<double>(document_length) : 0.0;
    const double pairs = documents * attention_pairs(*Documents::single(document_length), c_.attention);
    const double weights = d * (2.0 * q + 2.0 * k + g);
    // Backward computes the scores again: five products a pair against two.
    const double projections = 2.0 * T * weights;
    const double scores = 4.0 * q * pairs;
    const double norms = c_.qk_norm ? q + k + static_cast<double>(c_.heads + c_.kv_heads) : 0.0;
    const double gated = c_.gate == Gate::none ? 0.0 : q;
    return {.forward_flops = projections + scores,
            .backward_flops = 2.0 * projections + 2.5 * scores,
            .forward_bytes = 4.0 * (weights + T * (2.0 * d + 4.0 * q + 4.0 * k + 2.0 * g)),
            .saved_bytes = 4.0 * T * (d + 2.0 * q + 2.0 * k + static_cast<double>(c_.heads) + norms + g + gated)};
  }

  double state_bytes(std::int64_t length) const override {
    return KeyValueCache::bytes_for(length, c_.kv_heads, c_.head_dim, c_.head_dim, c_.attention, DType::f32);
  }

 private:
  std::int64_t gate_width() const { return c_.gate == Gate::headwise ? c_.heads : c_.heads * c_.head_dim; }

  // x W^T (+ b) as [T, heads, head_dim].
  Var heads_of(Tape& tape, const Var& x, Parameter& weight, Parameter* bias, std::int64_t heads) const {
    return projected(tape, x, weight, bias).reshape({x.dim(0), heads, c_.head_dim});
  }

  static Var projected(Tape& tape, const Var& x, Parameter& weight, Parameter* bias) {
    return bias == nullptr ? linear(tape, x, tape.parameter(weight))
                           : linear(tape, x, tape.parameter(weight), tape.parameter(*bias));
  }

  // Queries or keys, normalised for each head and turned to their positions, where the layer does so.
  Var rotated(Tape& tape, const DocumentsPtr& documents, const Var& x, Parameter* norm_w) const {
    if (norm_w == nullptr) return rope_ ? rope(tape, x, documents, *rope_) : x;
    const Var weight = tape.parameter(*norm_w);
    return rope_ ? norm_rope(tape, x, weight, documents, *rope_, c_.norm_eps) : rms_norm(tape, x, weight, c_.norm_eps);
  }

  static KeyValueCache& cache_of(const Tape& tape, MixerState& state) {
    WEFT_CHECK(!tape.recording(), "attention: continuing from a state is inference only");
    auto* own = dynamic_cast<AttentionState*>(&state);
    WEFT_CHECK(own != nullptr, "attention: the state of another mixer");
    return own->cache;
  }

  Config c_;
  Parameter *wq_, *wk_, *wv_, *wo_;
  Parameter *bq_ = nullptr, *bk_ = nullptr, *bv_ = nullptr, *bo_ = nullptr;
  Parameter *q_norm_w_ = nullptr, *k_norm_w_ = nullptr;
  Parameter *sink_logit_ = nullptr, *wg_ = nullptr;
  std::shared_ptr<const RopeTable> rope_;
};

std::unique_ptr<Mixer> create(const ParameterScope& scope, const MixerSite& site, const Options& options,
                              const std::string& where) {
  return std::make_unique<AttentionMixer>(scope, config_from(site, options, where));
}

std::vector<OptionSpec> option_specs() {
  constexpr double kMany = std::numeric_limits<std::int32_t>::max();
  std::vector<OptionSpec> specs = {
      integer_option("heads", 4, "query heads", 1, 65536),
      kv_heads_option(),
      integer_option("head_dim", 0, "width of a head; 0 = width / heads", 0, 65536),
      integer_option("window", 0, "tokens a query sees, itself included; 0 = all before it", 0, kMany),
      integer_option("sinks", 0, "first tokens of a document that stay visible behind the window", 0, kMany),
      flag_option("sink_logit", false, "a learned logit for each head that only enlarges the softmax denominator"),
      real_option("soft_cap", 0.0, "logits a become c tanh(a / c); 0 = off", 0.0, 1e30),
      flag_option("qk_norm", true, "RMS norm of queries and keys, for each head"),
      choice_option("gate", "none", "sigmoid gate of the output from the layer's input: one for each channel or head",
                    {"none", "elementwise", "headwise"}),
      rope_option(),
      rope_base_option(),
      real_option("rope_fraction", 1.0, "part of a head's channels that turn", 0.0, 1.0),
      yarn_factor_option(),
      yarn_original_length_option(),
      flag_option("bias", false, "biases of the query, key and value projections"),
      later(flag_option("out_bias", false, "bias of the output projection"))};
  for (OptionSpec& spec : rope_scaling_options()) specs.push_back(std::move(spec));
  return specs;
}

}  // namespace

const MixerType& attention_mixer() {
  static const MixerType type{.name = "attention",
                              .summary = "softmax attention: full or sliding window, grouped heads, sinks, gates",
                              .options = option_specs(),
                              .context_parallel = ContextParallel::keys_values,
                              .limits = {},
                              .create = create};
  return type;
}

}  // namespace weft
