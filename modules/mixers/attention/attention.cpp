#include "modules/mixers/attention/attention.h"

#include <cmath>
#include <limits>
#include <optional>

#include "autograd/ops/gate/gate.h"
#include "autograd/ops/linear/linear.h"
#include "autograd/ops/rms_norm/rms_norm.h"
#include "autograd/ops/rope/rope.h"
#include "modules/families/attention/attention.h"
#include "modules/families/attention/key_value_cache.h"

namespace weft {
namespace {

enum class Gate : std::uint8_t { none, elementwise, headwise };

struct Config {
  std::int64_t width, layers;
  std::int64_t heads, kv_heads, head_dim;
  AttentionOptions attention;
  bool sink_logit, qk_norm, bias;
  Gate gate;
  std::optional<RopeConfig> rope;
};

Gate gate_from(const std::string& name) {
  if (name == "elementwise") return Gate::elementwise;
  return name == "headwise" ? Gate::headwise : Gate::none;
}

std::optional<RopeConfig> rope_from(const Options& options, std::int64_t head_dim, const std::string& where) {
  const double factor = options.real("yarn_factor");
  const std::int64_t original = options.integer("yarn_original_length");
  if (!options.flag("rope")) {
    if (factor != 1.0) config_error("{}: yarn_factor = {} has no effect with rope = false; remove one", where, factor);
    return std::nullopt;
  }
  if (factor > 1.0 && original == 0) {
    config_error("{}: yarn_factor = {} needs yarn_original_length, the length the model was first trained on", where,
                 factor);
  }
  const double fraction = options.real("rope_fraction");
  if (fraction == 1.0 && head_dim % 2 != 0) {
    config_error("{}: head_dim = {} is odd; rope = true turns channels in pairs and needs an even number", where,
                 head_dim);
  }
  const auto rotary_dim = 2 * static_cast<std::int64_t>(static_cast<double>(head_dim) * fraction / 2.0);
  if (rotary_dim == 0) {
    config_error(
        "{}: rope_fraction = {} of head_dim = {} leaves no pair of channels to turn; raise it, or set rope = "
        "false",
        where, fraction, head_dim);
  }
  return RopeConfig{.rotary_dim = rotary_dim,
                    .base = options.real("rope_base"),
                    .yarn_factor = factor,
                    .yarn_original_length = original};
}

Config config_from(const MixerSite& site, const Options& options, const std::string& where) {
  const std::int64_t heads = options.integer("heads");
  const std::int64_t kv_heads = options.integer("kv_heads") == 0 ? heads : options.integer("kv_heads");
  if (heads % kv_heads != 0) {
    config_error("{}: heads = {} is not a multiple of kv_heads = {}", where, heads, kv_heads);
  }
  std::int64_t head_dim = options.integer("head_dim");
  if (head_dim == 0) {
    if (site.width % heads != 0) {
      config_error("{}: heads = {} does not divide the model's width = {}; set head_dim", where, heads, site.width);
    }
    head_dim = site.width / heads;
  }
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
          .gate = gate_from(options.text("gate")),
          .rope = rope_from(options, head_dim, where)};
}

class AttentionState final : public MixerState {
 public:
  explicit AttentionState(KeyValueCache keys) : cache(std::move(keys)) {}
  std::unique_ptr<MixerState> clone() const override { return std::make_unique<AttentionState>(cache); }
  std::size_t bytes() const override { return cache.bytes(); }

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
    if (c_.rope) rope_.emplace(*c_.rope);
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
    return linear(tape, o.reshape({T, c_.heads * c_.head_dim}), tape.parameter(*wo_));
  }

  Tensor decode(Tape& tape, const Tensor& x, std::span<const std::int32_t> positions, MixerState& state) override {
    WEFT_CHECK(x.dim(0) == static_cast<std::int64_t>(positions.size()), "attention: {} tokens, {} positions", x.dim(0),
               positions.size());
    std::vector<std::int32_t> cu(positions.size() + 1);
    for (std::size_t n = 0; n < cu.size(); ++n) cu[n] = static_cast<std::int32_t>(n);
    const auto documents =
        std::make_shared<const Documents>(std::move(cu), std::vector<std::int32_t>(positions.begin(), positions.end()));
    return forward(tape, Tape::constant(x), documents, &state).value;
  }

  std::unique_ptr<MixerState> initial_state(std::int64_t sequences, DType dtype) const override {
    return std::make_unique<AttentionState>(
        KeyValueCache(sequences, c_.kv_heads, c_.head_dim, c_.head_dim, c_.attention, dtype));
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
    const Var y = bias == nullptr ? linear(tape, x, tape.parameter(weight))
                                  : linear(tape, x, tape.parameter(weight), tape.parameter(*bias));
    return y.reshape({x.dim(0), heads, c_.head_dim});
  }

  // Queries or keys, normalised for each head and turned to their positions, where the layer does so.
  Var rotated(Tape& tape, const DocumentsPtr& documents, Var x, Parameter* norm_w) const {
    if (norm_w != nullptr) x = rms_norm(tape, x, tape.parameter(*norm_w));
    return rope_ ? rope(tape, x, documents, *rope_) : x;
  }

  static KeyValueCache& cache_of(const Tape& tape, MixerState& state) {
    WEFT_CHECK(!tape.recording(), "attention: continuing from a state is inference only");
    auto* own = dynamic_cast<AttentionState*>(&state);
    WEFT_CHECK(own != nullptr, "attention: the state of another mixer");
    return own->cache;
  }

  Config c_;
  Parameter *wq_, *wk_, *wv_, *wo_;
  Parameter *bq_ = nullptr, *bk_ = nullptr, *bv_ = nullptr;
  Parameter *q_norm_w_ = nullptr, *k_norm_w_ = nullptr;
  Parameter *sink_logit_ = nullptr, *wg_ = nullptr;
  std::optional<RopeTable> rope_;
};

std::unique_ptr<Mixer> create(const ParameterScope& scope, const MixerSite& site, const Options& options,
                              const std::string& where) {
  return std::make_unique<AttentionMixer>(scope, config_from(site, options, where));
}

std::vector<OptionSpec> option_specs() {
  constexpr double kMany = std::numeric_limits<std::int32_t>::max();
  const auto integer = [](const char* key, std::int64_t value, const char* help, double minimum, double maximum) {
    return OptionSpec{
        .key = key, .default_value = value, .help = help, .minimum = minimum, .maximum = maximum, .choices = {}};
  };
  const auto real = [](const char* key, double value, const char* help, double minimum, double maximum) {
    return OptionSpec{
        .key = key, .default_value = value, .help = help, .minimum = minimum, .maximum = maximum, .choices = {}};
  };
  const auto flag = [](const char* key, bool value, const char* help) {
    return OptionSpec{.key = key, .default_value = value, .help = help, .choices = {}};
  };
  return {integer("heads", 4, "query heads", 1, 65536),
          integer("kv_heads", 0, "key/value heads, each shared by heads / kv_heads query heads; 0 = heads", 0, 65536),
          integer("head_dim", 0, "width of a head; 0 = width / heads", 0, 65536),
          integer("window", 0, "tokens a query sees, itself included; 0 = all before it", 0, kMany),
          integer("sinks", 0, "first tokens of a document that stay visible behind the window", 0, kMany),
          flag("sink_logit", false, "a learned logit for each head that only enlarges the softmax denominator"),
          real("soft_cap", 0.0, "logits a become c tanh(a / c); 0 = off", 0.0, 1e30),
          flag("qk_norm", true, "RMS norm of queries and keys, for each head"),
          OptionSpec{.key = "gate",
                     .default_value = std::string("none"),
                     .help = "sigmoid gate of the output from the layer's input: one for each channel or head",
                     .choices = {"none", "elementwise", "headwise"}},
          flag("rope", true, "rotary positions; false = no position encoding"),
          real("rope_base", 10000.0, "base of the rotary frequencies", 1.0, 1e30),
          real("rope_fraction", 1.0, "part of a head's channels that turn", 0.0, 1.0),
          real("yarn_factor", 1.0, "YaRN: new length / original length; 1 = off", 1.0, 1e9),
          integer("yarn_original_length", 0, "YaRN: length the model was first trained on", 0, kMany),
          flag("bias", false, "biases of the query, key and value projections")};
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
