#include "modules/mixers/mla/mla.h"

#include <cmath>
#include <optional>

#include "autograd/ops/columns/columns.h"
#include "autograd/ops/linear/linear.h"
#include "autograd/ops/rms_norm/rms_norm.h"
#include "autograd/ops/rope/rope.h"
#include "modules/families/attention/attention.h"
#include "modules/families/attention/key_value_cache.h"
#include "modules/mixers/mla/head_products.h"
#include "modules/rope_options.h"

// T tokens, N sequences, d model width, H heads, d_c latent, d_q query latent, D_n content and D_r shared width of
// queries and keys, D = D_n + D_r, D_V value width.

namespace weft {
namespace {

struct Config {
  MixerSite site;
  std::int64_t H, d_c, d_q, D_n, D_r, D_V;  // d_q = 0: queries straight from the input
  std::optional<RopeConfig> rope;

  std::int64_t D() const { return D_n + D_r; }
};

Config config_from(const MixerSite& site, const Options& options, const std::string& where) {
  const std::int64_t D_n = options.integer("content_dim");
  const std::int64_t D_V = options.integer("value_dim");
  const Config c{.site = site,
                 .H = options.integer("heads"),
                 .d_c = options.integer("latent_dim"),
                 .d_q = options.integer("query_latent_dim"),
                 .D_n = D_n,
                 .D_r = options.integer("shared_dim"),
                 .D_V = D_V == 0 ? D_n : D_V,
                 .rope = yarn_rope_from(options, "shared_dim", options.integer("shared_dim"), where)};
  if (c.d_c >= c.H * (c.D_n + c.D_V)) {
    config_error(
        "{}: latent_dim = {} is no smaller than the keys and values it stands for, {} heads of {} + {} channels; use a "
        "smaller latent, or the mixer attention",
        where, c.d_c, c.H, c.D_n, c.D_V);
  }
  if (c.d_q >= std::min(site.width, c.H * c.D())) {
    config_error(
        "{}: query_latent_dim = {} is no low rank for queries from {} to {} channels; use a smaller rank, or 0 for "
        "queries straight from the input",
        where, c.d_q, site.width, c.H * c.D());
  }
  return c;
}

// Latents and shared keys of all tokens: one key head of width d_c + D_r, whose first d_c numbers are also the value.
class MlaState final : public MixerState {
 public:
  explicit MlaState(KeyValueCache latents) : cache(std::move(latents)) {}
  std::unique_ptr<MixerState> clone() const override { return std::make_unique<MlaState>(cache); }
  std::size_t bytes() const override { return cache.bytes(); }
  bool replayable() const override { return true; }
  bool make_room() override { return cache.make_room(); }
  void count_token() override { cache.count_token(); }

  KeyValueCache cache;
};

class Mla final : public Mixer {
 public:
  Mla(const ParameterScope& scope, const Config& config) : c_(config) {
    const std::int64_t d = c_.site.width;
    const double deviation = 0.02;
    const auto matrix = [&](const char* name, std::int64_t out, std::int64_t in, double scale) {
      return &scope.declare(name, {out, in}, ParameterKind::matrix, Init::normal(scale));
    };
    const auto norm = [&](const char* name, std::int64_t n) {
      return &scope.declare(name, {n}, ParameterKind::vector, Init::constant(1.0));
    };
    if (c_.d_q == 0) {
      wq_ = matrix("wq", c_.H * c_.D(), d, deviation);
    } else {
      wq_a_ = matrix("wq_a", c_.d_q, d, deviation);
      q_a_norm_w_ = norm("q_a_norm_w", c_.d_q);
      wq_ = matrix("wq_b", c_.H * c_.D(), c_.d_q, deviation);
    }
    wkv_a_ = matrix("wkv_a", c_.d_c + c_.D_r, d, deviation);
    kv_a_norm_w_ = norm("kv_a_norm_w", c_.d_c);
    wkv_b_ = matrix("wkv_b", c_.H * (c_.D_n + c_.D_V), c_.d_c, deviation);
    wo_ = matrix("wo", d, c_.H * c_.D_V, deviation / std::sqrt(2.0 * static_cast<double>(c_.site.layers)));
    if (c_.rope) rope_ = constant<RopeTable>(*c_.rope);
  }

  Var forward(Tape& tape, const Var& x, const DocumentsPtr& documents, MixerState* state) override {
    const Projected p = project(tape, x, documents);
    Var o;
    if (state == nullptr) {
      o = expanded(tape, p, documents);
    } else {
      KeyValueCache& cache = cache_of(tape, *state);
      o = is_empty(cache) ? prefill(tape, p, documents, cache) : absorbed(tape, p, *documents, cache);
    }
    return linear(tape, o.reshape({x.dim(0), c_.H * c_.D_V}), tape.parameter(*wo_));
  }

  std::unique_ptr<MixerState> initial_state(std::int64_t sequences, const Place& place) const override {
    return std::make_unique<MlaState>(
        KeyValueCache(sequences, 1, c_.d_c + c_.D_r, c_.d_c, {}, place, CachedValues::inside_keys));
  }

  // Of the expanded form, which training runs.
  MixerCost cost(std::int64_t tokens, std::int64_t document_length) const override {
    const auto T = static_cast<double>(tokens);
    const auto d = static_cast<double>(c_.site.width);
    const auto H = static_cast<double>(c_.H);
    const auto D = static_cast<double>(c_.D());
    const auto D_V = static_cast<double>(c_.D_V);
    const auto d_c = static_cast<double>(c_.d_c);
    const auto d_q = static_cast<double>(c_.d_q);
    const double query_weights = c_.d_q == 0 ? d * H * D : d_q * (d + H * D);
    const double weights = query_weights + d * static_cast<double>(c_.d_c + c_.D_r) +
                           d_c * H * static_cast<double>(c_.D_n + c_.D_V) + d * H * D_V;
    const double documents = document_length > 0 ? T / static_cast<double>(document_length) : 0.0;
    const double pairs = documents * attention_pairs(*Documents::single(document_length), {});
    const double projections = 2.0 * T * weights;
    // Kept by the tape: x, the latents before and after their norms, q, k, v, o and its statistics.
    const double query_latent = c_.d_q == 0 ? 0.0 : 2.0 * d_q + 1.0;
    const double saved = d + 2.0 * d_c + 1.0 + query_latent + H * (2.0 * D + 2.0 * D_V + 1.0);
    // Backward computes the scores again: five products a pair against two.
    return {.forward_flops = projections + 2.0 * H * (D + D_V) * pairs,
            .backward_flops = 2.0 * projections + H * (6.0 * D + 4.0 * D_V) * pairs,
            .forward_bytes = 4.0 * (weights + T * (2.0 * saved + d)),
            .saved_bytes = 4.0 * T * saved};
  }

  double state_bytes(std::int64_t length) const override {
    return KeyValueCache::bytes_for(length, 1, c_.d_c + c_.D_r, c_.d_c, {}, DType::f32, CachedValues::inside_keys);
  }

 private:
  struct Projected {
    Var q;    // [T, H, D]: content, then shared width; the latter turned
    Var c;    // [T, d_c], normalised
    Var k_r;  // [T, 1, D_r], turned
  };

  Projected project(Tape& tape, const Var& x, const DocumentsPtr& documents) const {
    const std::int64_t T = x.dim(0);
    const auto [c_raw, k_r] = split_columns(tape, linear(tape, x, tape.parameter(*wkv_a_)), c_.d_c);
    const Var query_in =
        wq_a_ == nullptr ? x : rms_norm(tape, linear(tape, x, tape.parameter(*wq_a_)), tape.parameter(*q_a_norm_w_));
    Projected p{.q = linear(tape, query_in, tape.parameter(*wq_)).reshape({T, c_.H, c_.D()}),
                .c = rms_norm(tape, c_raw, tape.parameter(*kv_a_norm_w_)),
                .k_r = k_r.reshape({T, 1, c_.D_r})};
    if (!rope_) return p;
    const auto [q_n, q_r] = split_columns(tape, p.q, c_.D_n);
    p.q = join_columns(tape, q_n, rope(tape, q_r, documents, *rope_));
    p.k_r = rope(tape, p.k_r, documents, *rope_);
    return p;
  }

  // Keys and values of every head from the latents, and ordinary attention over them -> [T, H, D_V].
  Var expanded(Tape& tape, const Projected& p, const DocumentsPtr& documents) const {
    const Var kv = linear(tape, p.c, tape.parameter(*wkv_b_)).reshape({p.c.dim(0), c_.H, c_.D_n + c_.D_V});
    const auto [k_n, v] = split_columns(tape, kv, c_.D_n);
    return attention(tape, p.q, join_columns(tape, k_n, p.k_r), v, {}, documents);
  }

  // The keys of the absorbed form: latent, then shared key -> [T, 1, d_c + D_r].
  Var latent_keys(Tape& tape, const Projected& p) const {
    return join_columns(tape, p.c.reshape({p.c.dim(0), 1, c_.d_c}), p.k_r);
  }

  // First tokens of all sequences: nothing is cached yet, and the expanded form is the cheaper one.
  Var prefill(Tape& tape, const Projected& p, const DocumentsPtr& documents, KeyValueCache& cache) const {
    WEFT_CHECK(!documents->anchored(), "mla: a row that continues from a state has no anchor");
    WEFT_CHECK(documents->count() == cache.sequences(), "mla: {} documents for a state of {} sequences",
               documents->count(), cache.sequences());
    const Tensor keys = latent_keys(tape, p).value;
    for (std::int64_t n = 0; n < documents->count(); ++n) {
      WEFT_CHECK(documents->pos0(n) == 0, "mla: document {} starts at position {}, its state is empty", n,
                 documents->pos0(n));
    }
    cache.append(documents->cu_seqlens(), keys, p.c.value);
    return expanded(tape, p, documents);
  }

  // Attention of all heads over the latents themselves, wkv_b absorbed into queries and output -> [T, H, D_V].
  Var absorbed(Tape& tape, const Projected& p, const Documents& documents, KeyValueCache& cache) const {
    const Tensor wkv_b = tape.parameter(*wkv_b_).value.reshape({c_.H, c_.D_n + c_.D_V, c_.d_c});
    const auto [q_n, q_r] = split_columns(tape, p.q, c_.D_n);
    const Tensor q_c = head_products(tape, q_n.value, wkv_b, 0, c_.D_n, Op::none);
    const Tensor q = join_columns(tape, Tape::constant(q_c), q_r).value;
    const AttentionOptions options{.scale = 1.0 / std::sqrt(static_cast<double>(c_.D()))};
    const Tensor context = attention_cached(tape, q, latent_keys(tape, p).value,
                                            p.c.value.reshape({p.c.dim(0), 1, c_.d_c}), {}, documents, options, cache);
    return Tape::constant(head_products(tape, context, wkv_b, c_.D_n, c_.D_V, Op::transpose));
  }

  static bool is_empty(const KeyValueCache& cache) {
    for (std::int64_t n = 0; n < cache.sequences(); ++n) {
      if (cache.length(n) > 0) return false;
    }
    return true;
  }

  static KeyValueCache& cache_of(const Tape& tape, MixerState& state) {
    WEFT_CHECK(!tape.recording(), "mla: continuing from a state is inference only");
    auto* own = dynamic_cast<MlaState*>(&state);
    WEFT_CHECK(own != nullptr, "mla: the state of another mixer");
    return own->cache;
  }

  Config c_;
  Parameter *wq_, *wkv_a_, *kv_a_norm_w_, *wkv_b_, *wo_;  // wq_ is wq, or wq_b with a query latent
  Parameter *wq_a_ = nullptr, *q_a_norm_w_ = nullptr;
  std::shared_ptr<const RopeTable> rope_;
};

std::unique_ptr<Mixer> create(const ParameterScope& scope, const MixerSite& site, const Options& options,
                              const std::string& where) {
  return std::make_unique<Mla>(scope, config_from(site, options, where));
}

std::vector<OptionSpec> option_specs() {
  return {
      integer_option("heads", 8, "heads H", 1, 65536),
      integer_option("latent_dim", 512, "width d_c of the latent that keys and values come from", 1, 65536),
      integer_option("content_dim", 128, "width D_n of a head's queries and keys that comes from the latent", 1, 65536),
      integer_option("shared_dim", 64, "width D_r of the queries and of the one key that all heads share", 1, 65536),
      integer_option("value_dim", 0, "width D_V of a head's values; 0 = content_dim", 0, 65536),
      integer_option("query_latent_dim", 0, "width d_q of a latent that the queries come from; 0 = none", 0, 65536),
      rope_option("rotary positions on the shared width; false = no position encoding"),
      rope_base_option(),
      yarn_factor_option(),
      yarn_original_length_option()};
}

}  // namespace

const MixerType& mla_mixer() {
  static const MixerType type{.name = "mla",
                              .summary = "multi-head latent attention: keys and values of all heads from one latent",
                              .options = option_specs(),
                              .context_parallel = ContextParallel::keys_values,
                              .limits = {},
                              .create = create};
  return type;
}

}  // namespace weft
