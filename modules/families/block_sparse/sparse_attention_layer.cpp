#include "modules/families/block_sparse/sparse_attention_layer.h"

#include <cmath>

#include "autograd/ops/linear/linear.h"
#include "autograd/ops/norm_rope/norm_rope.h"
#include "autograd/ops/rms_norm/rms_norm.h"
#include "modules/families/attention/attention.h"
#include "modules/families/attention/key_value_cache.h"

namespace weft {
namespace {

class SparseAttentionState final : public MixerState {
 public:
  SparseAttentionState(const KeyValueCache& keys_, std::unique_ptr<SelectorState> selector_)
      : keys(keys_), selector(std::move(selector_)) {}
  std::unique_ptr<MixerState> clone() const override {
    return std::make_unique<SparseAttentionState>(keys, selector == nullptr ? nullptr : selector->clone());
  }
  std::size_t bytes() const override { return keys.bytes() + (selector == nullptr ? 0 : selector->bytes()); }

  KeyValueCache keys;
  std::unique_ptr<SelectorState> selector;  // null for full attention
};

}  // namespace

std::vector<OptionSpec> sparse_attention_options() {
  std::vector<OptionSpec> specs = block_sparse::head_options();
  specs.push_back(flag_option("qk_norm", true, "RMS norm of queries and keys, for each head"));
  return specs;
}

SparseAttentionConfig sparse_attention_config(const MixerSite& site, const Options& options, const std::string& where) {
  return {.width = site.width,
          .layers = site.layers,
          .heads = block_sparse::heads_from(site, options, where),
          .qk_norm = options.flag("qk_norm")};
}

SparseAttentionLayer::SparseAttentionLayer(const ParameterScope& scope, const SparseAttentionConfig& config,
                                           std::unique_ptr<Selector> selector)
    : c_(config), selector_(std::move(selector)) {
  const std::int64_t queries = c_.heads.heads * c_.heads.head_dim;
  const std::int64_t keys = c_.heads.kv_heads * c_.heads.head_dim;
  const auto matrix = [&](const char* name, std::int64_t out, std::int64_t in, double deviation) {
    return &scope.declare(name, {out, in}, ParameterKind::matrix, Init::normal(deviation));
  };
  wq_ = matrix("wq", queries, c_.width, 0.02);
  wk_ = matrix("wk", keys, c_.width, 0.02);
  wv_ = matrix("wv", keys, c_.width, 0.02);
  if (c_.qk_norm) {
    q_norm_w_ = &scope.declare("q_norm_w", {c_.heads.head_dim}, ParameterKind::vector, Init::constant(1.0));
    k_norm_w_ = &scope.declare("k_norm_w", {c_.heads.head_dim}, ParameterKind::vector, Init::constant(1.0));
  }
  wo_ = matrix("wo", c_.width, queries, 0.02 / std::sqrt(2.0 * static_cast<double>(c_.layers)));
  if (c_.heads.rope) rope_ = constant<RopeTable>(*c_.heads.rope);
}

Var SparseAttentionLayer::heads_of(Tape& tape, const Var& x, Parameter& weight, std::int64_t heads) const {
  return linear(tape, x, tape.parameter(weight)).reshape({x.dim(0), heads, c_.heads.head_dim});
}

// Queries or keys, normalised for each head and turned to their positions, where the layer does so.
Var SparseAttentionLayer::rotated(Tape& tape, const DocumentsPtr& documents, const Var& x, Parameter* norm_w) const {
  if (norm_w == nullptr) return rope_ ? rope(tape, x, documents, *rope_) : x;
  const Var weight = tape.parameter(*norm_w);
  return rope_ ? norm_rope(tape, x, weight, documents, *rope_) : rms_norm(tape, x, weight);
}

Var SparseAttentionLayer::forward(Tape& tape, const Var& x, const DocumentsPtr& documents, MixerState* state) {
  const Var q = rotated(tape, documents, heads_of(tape, x, *wq_, c_.heads.heads), q_norm_w_);
  const Var k = rotated(tape, documents, heads_of(tape, x, *wk_, c_.heads.kv_heads), k_norm_w_);
  const Var v = heads_of(tape, x, *wv_, c_.heads.kv_heads);
  const SelectorInputs in{x.value, q.value, k.value, v.value, documents};
  Var o;
  if (state != nullptr) {
    o = Tape::constant(continued(tape, in, *state));
  } else if (selector_ == nullptr) {
    o = attention(tape, q, k, v, {}, documents);
  } else {
    const Tensor idx = selector_->select(tape, in, nullptr);
    o = block_sparse_attention(tape, q, k, v, idx, selector_->block(), documents).o;
  }
  return linear(tape, o.reshape({x.dim(0), c_.heads.heads * c_.heads.head_dim}), tape.parameter(*wo_));
}

Tensor SparseAttentionLayer::continued(Tape& tape, const SelectorInputs& in, MixerState& state) const {
  WEFT_CHECK(!tape.recording(), "sparse attention: continuing from a state is inference only");
  auto* own = dynamic_cast<SparseAttentionState*>(&state);
  WEFT_CHECK(own != nullptr, "sparse attention: the state of another mixer");
  if (selector_ == nullptr) {
    return attention_cached(tape, in.q, in.k, in.v, {}, *in.documents, {}, own->keys);
  }
  const Documents& documents = *in.documents;
  own->keys.append(documents.cu_seqlens(), in.k, in.v);
  const Tensor idx = selector_->select(tape, in, own->selector.get());
  // Keys in the row itself, where kernels for whole rows read them.
  if (!tape.device().is_cpu() && are_first_tokens(documents)) {
    return block_sparse_attention(tape, Tape::constant(in.q), Tape::constant(in.k), Tape::constant(in.v), idx,
                                  selector_->block(), in.documents)
        .o.value;
  }
  return block_sparse_attention_cached(tape, in.q, own->keys, c_.heads.kv_heads, c_.heads.head_dim, idx,
                                       selector_->block(), documents)
      .o;
}

std::unique_ptr<MixerState> SparseAttentionLayer::initial_state(std::int64_t sequences, const Place& place) const {
  return std::make_unique<SparseAttentionState>(
      KeyValueCache(sequences, c_.heads.kv_heads, c_.heads.head_dim, c_.heads.head_dim, {}, place),
      selector_ == nullptr ? nullptr : selector_->initial_state(sequences, place));
}

MixerCost SparseAttentionLayer::cost(std::int64_t tokens, std::int64_t document_length) const {
  const auto T = static_cast<double>(tokens);
  const auto L = static_cast<double>(document_length);
  const auto d = static_cast<double>(c_.width);
  const auto q = static_cast<double>(c_.heads.heads * c_.heads.head_dim);
  const auto k = static_cast<double>(c_.heads.kv_heads * c_.heads.head_dim);
  const double documents = document_length > 0 ? T / L : 0.0;
  const double pairs = selector_ == nullptr ? L * (L + 1.0) / 2.0 : selector_->pairs(document_length);
  const double choice = selector_ == nullptr ? 0.0 : documents * selector_->flops(document_length);
  const double indices =
      selector_ == nullptr ? 0.0 : static_cast<double>(selector_->heads() * selector_->slots(document_length));
  const double weights = d * (2.0 * q + 2.0 * k);
  // Backward computes the scores again: five products a pair against two. Choosing has no backward.
  const double projections = 2.0 * T * weights;
  const double scores = 4.0 * q * documents * pairs;
  const double norms = c_.qk_norm ? q + k + static_cast<double>(c_.heads.heads + c_.heads.kv_heads) : 0.0;
  return {.forward_flops = projections + scores + choice,
          .backward_flops = 2.0 * projections + 2.5 * scores,
          .forward_bytes = 4.0 * (weights + T * (2.0 * d + 4.0 * q + 4.0 * k + indices)),
          .saved_bytes = 4.0 * T * (d + 2.0 * q + 2.0 * k + static_cast<double>(c_.heads.heads) + norms + indices)};
}

double SparseAttentionLayer::state_bytes(std::int64_t length) const {
  return KeyValueCache::bytes_for(length, c_.heads.kv_heads, c_.heads.head_dim, c_.heads.head_dim, {}, DType::f32) +
         (selector_ == nullptr ? 0.0 : selector_->state_bytes(length));
}

}  // namespace weft
