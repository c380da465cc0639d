#include "modules/mixers/nsa/nsa.h"

#include <cmath>
#include <limits>
#include <optional>

#include "autograd/document_tables.h"
#include "autograd/ops/linear/linear.h"
#include "modules/families/attention/attention.h"
#include "modules/families/block_sparse/compression.h"
#include "modules/families/block_sparse/selector.h"
#include "modules/families/block_sparse/sparse_options.h"
#include "modules/families/block_sparse/summary_cache.h"
#include "modules/mixers/nsa/branch_gate.h"

namespace weft {
namespace {

enum class Phi : std::uint8_t { mean, linear, mlp };

struct Config {
  std::int64_t width, layers;
  std::int64_t heads, kv_heads, head_dim, value_dim;
  KeySpan span;
  BlockRule rule;
  AttentionOptions window;
  Phi phi;
  std::int64_t phi_width;  // r; 0 = twice the width of a head
  std::optional<RopeConfig> rope;
};

Config config_from(const MixerSite& site, const Options& options, const std::string& where) {
  const block_sparse::SparseHeads heads = block_sparse::heads_from(site, options, where);
  const KeySpan span = block_sparse::compression_span_from(options, where);
  const std::string& phi = options.text("phi");
  const std::int64_t phi_width = options.integer("phi_width");
  if (phi_width > 0 && phi != "mlp") {
    config_error("{}: phi_width = {} has no effect with phi = \"{}\"; remove it, or set phi = \"mlp\"", where,
                 phi_width, phi);
  }
  const std::int64_t value_dim = options.integer("value_dim");
  return {.width = site.width,
          .layers = site.layers,
          .heads = heads.heads,
          .kv_heads = heads.kv_heads,
          .head_dim = heads.head_dim,
          .value_dim = value_dim == 0 ? heads.head_dim : value_dim,
          .span = span,
          .rule = block_sparse::block_rule_from(options, span, options.integer("local_blocks"), 0, where),
          .window = {.window = static_cast<std::int32_t>(options.integer("window"))},
          .phi = phi == "mean" ? Phi::mean : (phi == "linear" ? Phi::linear : Phi::mlp),
          .phi_width = phi_width,
          .rope = heads.rope};
}

class NsaState final : public MixerState {
 public:
  NsaState(const SummaryCache& compressed_, const KeyValueCache& selected_, const KeyValueCache& window_)
      : compressed(compressed_), selected(selected_), window(window_) {}
  std::unique_ptr<MixerState> clone() const override {
    return std::make_unique<NsaState>(compressed, selected, window);
  }
  std::size_t bytes() const override { return compressed.bytes() + selected.bytes() + window.bytes(); }

  SummaryCache compressed;
  KeyValueCache selected, window;
};

// The weights of one compression map.
class PhiWeights {
 public:
  PhiWeights(const ParameterScope& scope, const Config& c, std::int64_t width) {
    if (c.phi == Phi::mean) return;
    const std::int64_t rows = c.span.length * width;
    const std::int64_t r = c.phi == Phi::linear ? width : (c.phi_width == 0 ? 2 * width : c.phi_width);
    const Init first = c.phi == Phi::mlp ? Init::normal(1.0 / std::sqrt(static_cast<double>(rows))) : Init::constant(0);
    w1_ = &scope.declare("w1", {c.kv_heads, rows, r}, ParameterKind::matrix, first);
    if (c.phi == Phi::linear) return;
    pe_ = &scope.declare("pe", {c.kv_heads, c.span.length, width}, ParameterKind::vector, Init::normal(0.02));
    b1_ = &scope.declare("b1", {c.kv_heads, r}, ParameterKind::vector, Init::constant(0.0));
    w2_ = &scope.declare("w2", {c.kv_heads, r, width}, ParameterKind::matrix, Init::constant(0.0));
  }

  CompressionWeights on(Tape& tape) const {
    const auto var = [&](Parameter* p) { return p == nullptr ? Var{} : tape.parameter(*p); };
    return {var(pe_), var(w1_), var(b1_), var(w2_)};
  }
  // Multiply-adds for one block, and elements of the weights.
  double products() const { return elements(w1_) + elements(w2_); }

 private:
  static double elements(const Parameter* p) { return p == nullptr ? 0.0 : static_cast<double>(p->shape.numel()); }

  Parameter *pe_ = nullptr, *w1_ = nullptr, *b1_ = nullptr, *w2_ = nullptr;
};

class NsaMixer final : public Mixer {
 public:
  NsaMixer(const ParameterScope& scope, const Config& config)
      : c_(config), phi_k_(scope.scope("phi_k"), c_, c_.head_dim), phi_v_(scope.scope("phi_v"), c_, c_.value_dim) {
    const auto matrix = [&](const char* name, std::int64_t out, std::int64_t in, double deviation) {
      return &scope.declare(name, {out, in}, ParameterKind::matrix, Init::normal(deviation));
    };
    const std::int64_t keys = c_.kv_heads * c_.head_dim, values = c_.kv_heads * c_.value_dim;
    wq_ = matrix("wq", c_.heads * c_.head_dim, c_.width, 0.02);
    wk_c_ = matrix("wk_c", keys, c_.width, 0.02);
    wk_s_ = matrix("wk_s", keys, c_.width, 0.02);
    wk_w_ = matrix("wk_w", keys, c_.width, 0.02);
    wv_c_ = matrix("wv_c", values, c_.width, 0.02);
    wv_s_ = matrix("wv_s", values, c_.width, 0.02);
    wv_w_ = matrix("wv_w", values, c_.width, 0.02);
    w_gate_ = matrix("w_gate", kBranches * c_.heads, c_.width, 0.02);
    b_gate_ = &scope.declare("b_gate", {kBranches * c_.heads}, ParameterKind::vector, Init::constant(0.0));
    wo_ = matrix("wo", c_.width, c_.heads * c_.value_dim, 0.02 / std::sqrt(2.0 * static_cast<double>(c_.layers)));
    if (c_.rope) rope_ = constant<RopeTable>(*c_.rope);
  }

  Var forward(Tape& tape, const Var& x, const DocumentsPtr& documents, MixerState* state) override {
    const auto keys = [&](Parameter& w) { return heads_of(tape, x, w, c_.kv_heads, c_.head_dim); };
    const auto values = [&](Parameter& w) { return heads_of(tape, x, w, c_.kv_heads, c_.value_dim); };
    const Heads h{.q = rotated(tape, documents, heads_of(tape, x, *wq_, c_.heads, c_.head_dim)),
                  .k_c = keys(*wk_c_),
                  .v_c = values(*wv_c_),
                  .k_s = rotated(tape, documents, keys(*wk_s_)),
                  .v_s = values(*wv_s_),
                  .k_w = rotated(tape, documents, keys(*wk_w_)),
                  .v_w = values(*wv_w_)};
    const Branches o = state == nullptr ? branches(tape, h, documents) : continued(tape, h, documents, *state);
    const Var gates = linear(tape, x, tape.parameter(*w_gate_), tape.parameter(*b_gate_));
    const Var mixed = branch_gate(tape, o, gates);
    return linear(tape, mixed.reshape({x.dim(0), c_.heads * c_.value_dim}), tape.parameter(*wo_));
  }

  std::unique_ptr<MixerState> initial_state(std::int64_t sequences, const Place& place) const override {
    const auto cache = [&](const AttentionOptions& options) {
      return KeyValueCache(sequences, c_.kv_heads, c_.head_dim, c_.value_dim, options, place);
    };
    return std::make_unique<NsaState>(SummaryCache(sequences, c_.kv_heads, c_.head_dim, c_.value_dim, c_.span, place),
                                      cache({}), cache(c_.window));
  }

  MixerCost cost(std::int64_t tokens, std::int64_t document_length) const override {
    const auto T = static_cast<double>(tokens);
    const double documents = document_length > 0 ? T / static_cast<double>(document_length) : 0.0;
    const auto d = static_cast<double>(c_.width), H = static_cast<double>(c_.heads);
    const auto D = static_cast<double>(c_.head_dim), D_V = static_cast<double>(c_.value_dim);
    const double kv = static_cast<double>(c_.kv_heads) * (D + D_V);
    const double compressed = documents * static_cast<double>(c_.span.count(document_length));
    const double seen = documents * span_pairs(c_.span, document_length);
    const double pairs = seen + documents * (chosen_pairs(c_.rule, document_length) +
                                             attention_pairs(*Documents::single(document_length), c_.window));
    const double weights = d * (H * D + 3.0 * kv + kBranches * H + H * D_V);
    const double phi = phi_k_.products() + phi_v_.products();
    const double indices = static_cast<double>(c_.kv_heads * c_.rule.within(document_length).slots());
    const double projections = 2.0 * T * weights, compression = 2.0 * compressed * phi;
    // Backward computes scores and hidden layers again; scores for the choice are computed in forward only.
    return {.forward_flops = projections + compression + 2.0 * H * (D + D_V) * pairs + 2.0 * H * D * seen,
            .backward_flops = 2.0 * projections + 3.0 * compression + H * (6.0 * D + 4.0 * D_V) * pairs,
            .forward_bytes = 4.0 * (weights + phi + T * (2.0 * d + 2.0 * H * D + 6.0 * kv + 5.0 * H * D_V + indices) +
                                    2.0 * compressed * kv),
            .saved_bytes = 4.0 * T *
                               (d + H * D + (c_.phi == Phi::mean ? 2.0 : 3.0) * kv + (kBranches + 1.0) * H * D_V +
                                2.0 * kBranches * H + indices) +
                           4.0 * compressed * (kv + (rope_ ? D : 0.0))};
  }

  double state_bytes(std::int64_t length) const override {
    const auto cache = [&](const AttentionOptions& options) {
      return KeyValueCache::bytes_for(length, c_.kv_heads, c_.head_dim, c_.value_dim, options, DType::f32);
    };
    return SummaryCache::bytes_for(length, c_.kv_heads, c_.head_dim, c_.value_dim, c_.span, DType::f32) + cache({}) +
           cache(c_.window);
  }

 private:
  // Rows of the new tokens; k_c is not rotated, compressed keys are.
  struct Heads {
    Var q, k_c, v_c, k_s, v_s, k_w, v_w;
  };
  using Branches = std::array<Var, kBranches>;  // compressed, selected, window
  struct Compressed {
    Var k, v;
  };

  Var heads_of(Tape& tape, const Var& x, Parameter& weight, std::int64_t heads, std::int64_t width) const {
    return linear(tape, x, tape.parameter(weight)).reshape({x.dim(0), heads, width});
  }
  Var rotated(Tape& tape, const DocumentsPtr& documents, const Var& x) const {
    return rope_ ? rope(tape, x, documents, *rope_) : x;
  }

  // Compressed keys stand, and are rotated, at the first token of their block.
  Compressed compressed(Tape& tape, const Var& k, const Var& v, const DocumentsPtr& documents,
                        std::span<const std::int32_t> positions) const {
    const Var keys = compress(tape, k, phi_k_.on(tape), c_.span, documents);
    return {rope_ ? rope(tape, keys, positions, *rope_) : keys, compress(tape, v, phi_v_.on(tape), c_.span, documents)};
  }

  // The same for whole documents.
  Compressed compressed(Tape& tape, const Var& k, const Var& v, const DocumentsPtr& documents) const {
    const std::int64_t S = key_room(tape, *documents, c_.span);
    const auto find = [span = c_.span](const Documents& row, std::span<std::int32_t> positions) {
      std::size_t s = 0;
      for (std::int64_t n = 0; n < row.count(); ++n) {
        for (std::int64_t i = 0; i < span.count(row.length(n)); ++i)
          positions[s++] = row.pos0(n) + static_cast<std::int32_t>(i) * span.stride;
      }
    };
    const Var keys = compress(tape, k, phi_k_.on(tape), c_.span, documents, S);
    const Var values = compress(tape, v, phi_v_.on(tape), c_.span, documents, S);
    if (!rope_) return {keys, values};
    if (tape.device().is_cpu()) {
      std::vector<std::int32_t> positions(static_cast<std::size_t>(S));
      find(*documents, positions);
      return {rope(tape, keys, positions, *rope_), values};
    }
    const std::string name = fmt::format("positions of blocks of {} every {}", c_.span.length, c_.span.stride);
    const Tensor positions = documents->tables(tape.stream()).numbers_of(*documents, name, S, find);
    return {rope(tape, keys, positions, *rope_), values};
  }

  Branches branches(Tape& tape, const Heads& h, const DocumentsPtr& documents) const {
    const Compressed blocks = compressed(tape, h.k_c, h.v_c, documents);
    const AttentionWithStatistics o_c = span_attention(tape, h.q, blocks.k, blocks.v, c_.span, documents);
    const Tensor idx =
        choose_blocks(tape, h.q.value, blocks.k.value, o_c.lse, c_.rule, c_.span, BlockScore::overlap_sum, *documents);
    return {o_c.o, block_sparse_attention(tape, h.q, h.k_s, h.v_s, idx, c_.rule.block, documents).o,
            attention(tape, h.q, h.k_w, h.v_w, {}, documents, c_.window)};
  }

  // The same from a state, which takes the new tokens: a block that they complete is there before they attend.
  Branches continued(Tape& tape, const Heads& h, const DocumentsPtr& row, MixerState& state) const {
    WEFT_CHECK(!tape.recording(), "nsa: continuing from a state is inference only");
    auto* own = dynamic_cast<NsaState*>(&state);
    WEFT_CHECK(own != nullptr, "nsa: the state of another mixer");
    const Documents& documents = *row;
    const SummaryCache::Pending pending = own->compressed.extend(tape, h.k_c.value, h.v_c.value, documents);
    if (!pending.positions.empty()) {
      const Compressed blocks =
          compressed(tape, Tape::constant(pending.k), Tape::constant(pending.v), pending.documents, pending.positions);
      own->compressed.append(pending, blocks.k.value, blocks.v.value);
    }
    own->selected.append(documents.cu_seqlens(), h.k_s.value, h.v_s.value);
    // Keys in the row itself, where kernels for whole rows read them; the window's go to its cache.
    if (!tape.device().is_cpu() && are_first_tokens(documents)) {
      Branches o = branches(tape, h, row);
      own->window.append(documents.cu_seqlens(), h.k_w.value, h.v_w.value);
      return o;
    }
    const Tensor& q = h.q.value;
    const KeyValueCache& summaries = own->compressed.summaries();
    const CachedAttention o_c =
        span_attention_cached(tape, q, summaries, c_.kv_heads, c_.value_dim, c_.span, documents);
    const Tensor idx = choose_blocks_cached(tape, q, summaries, c_.kv_heads, o_c.lse, c_.rule, c_.span,
                                            BlockScore::overlap_sum, documents);
    const CachedAttention o_s =
        block_sparse_attention_cached(tape, q, own->selected, c_.kv_heads, c_.value_dim, idx, c_.rule.block, documents);
    const Tensor o_w = attention_cached(tape, q, h.k_w.value, h.v_w.value, {}, documents, c_.window, own->window);
    return {Tape::constant(o_c.o), Tape::constant(o_s.o), Tape::constant(o_w)};
  }

  Config c_;
  PhiWeights phi_k_, phi_v_;
  Parameter *wq_, *wk_c_, *wk_s_, *wk_w_, *wv_c_, *wv_s_, *wv_w_, *w_gate_, *b_gate_, *wo_;
  std::shared_ptr<const RopeTable> rope_;
};

std::unique_ptr<Mixer> create(const ParameterScope& scope, const MixerSite& site, const Options& options,
                              const std::string& where) {
  return std::make_unique<NsaMixer>(scope, config_from(site, options, where));
}

std::vector<OptionSpec> option_specs() {
  constexpr double kMany = std::numeric_limits<std::int32_t>::max();
  std::vector<OptionSpec> specs = block_sparse::head_options();
  specs.push_back(integer_option("value_dim", 0, "width of a head's values; 0 = head_dim", 0, 65536));
  for (OptionSpec& spec : block_sparse::block_options(16)) specs.push_back(std::move(spec));
  specs.push_back(
      integer_option("local_blocks", 2, "last blocks that are always selected, the query's own included", 1, 1 << 20));
  specs.push_back(integer_option("window", 512, "tokens of the window branch, the query included", 1, kMany));
  specs.push_back(choice_option("phi", "mlp",
                                "how a block is compressed: its mean, plus a linear map, or plus an MLP of its tokens",
                                {"mean", "linear", "mlp"}));
  specs.push_back(integer_option("phi_width", 0, "hidden width of the MLP; 0 = twice the width of a head", 0, 65536));
  return specs;
}

}  // namespace

const MixerType& nsa_mixer() {
  static const MixerType type{.name = "nsa",
                              .summary = "Native Sparse Attention: compressed, selected and window branches, gated",
                              .options = option_specs(),
                              .context_parallel = ContextParallel::keys_values,
                              .limits = {},
                              .create = create};
  return type;
}

}  // namespace weft
