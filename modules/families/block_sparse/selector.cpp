#include "modules/families/block_sparse/selector.h"

#include "modules/families/block_sparse/compression.h"
#include "modules/families/block_sparse/summary_cache.h"
#include "modules/mixer.h"

namespace weft {
namespace {

class MeanSelectorState final : public SelectorState {
 public:
  explicit MeanSelectorState(const SummaryCache& means_) : means(means_) {}
  std::unique_ptr<SelectorState> clone() const override { return std::make_unique<MeanSelectorState>(means); }
  std::size_t bytes() const override { return means.bytes(); }

  SummaryCache means;
};

class MeanSelector final : public Selector {
 public:
  explicit MeanSelector(const MeanSelectorConfig& config) : c_(config) {}

  std::int64_t block() const override { return c_.rule.block; }
  std::int64_t heads() const override { return c_.score == BlockScore::logit ? c_.heads : c_.kv_heads; }
  std::int64_t slots(std::int64_t length) const override { return c_.rule.within(length).slots(); }

  Tensor select(Tape& tape, const SelectorInputs& in, SelectorState* state) const override {
    if (state == nullptr) {
      const Var means =
          compress(tape, Tape::constant(in.k), {}, c_.span, in.documents, key_room(tape, *in.documents, c_.span));
      return choose_blocks(tape, in.q, means.value, {}, c_.rule, c_.span, c_.score, *in.documents);
    }
    auto* own = dynamic_cast<MeanSelectorState*>(state);
    WEFT_CHECK(own != nullptr, "the state belongs to another kind of selector");
    const auto no_values = [&](std::int64_t rows) { return tape.empty({rows, c_.kv_heads, 0}, in.k.dtype()); };
    const SummaryCache::Pending pending = own->means.extend(tape, in.k, no_values(in.k.dim(0)), *in.documents);
    if (!pending.positions.empty()) {
      const Var means = compress(tape, Tape::constant(pending.k), {}, c_.span, pending.documents);
      own->means.append(pending, means.value, no_values(means.dim(0)));
      if (!tape.device().is_cpu() && are_first_tokens(*in.documents)) {
        return choose_blocks(tape, in.q, means.value, {}, c_.rule, c_.span, c_.score, *in.documents);
      }
    }
    return choose_blocks_cached(tape, in.q, own->means.summaries(), c_.kv_heads, {}, c_.rule, c_.span, c_.score,
                                *in.documents);
  }

  std::unique_ptr<SelectorState> initial_state(std::int64_t sequences, const Place& place) const override {
    return std::make_unique<MeanSelectorState>(SummaryCache(sequences, c_.kv_heads, c_.head_dim, 0, c_.span, place));
  }
  double state_bytes(std::int64_t length) const override {
    return SummaryCache::bytes_for(length, c_.kv_heads, c_.head_dim, 0, c_.span, DType::f32);
  }
  double pairs(std::int64_t length) const override { return chosen_pairs(c_.rule, length); }
  double flops(std::int64_t length) const override {
    // Softmax scores take two passes: the denominator, then probabilities.
    const double passes = c_.score == BlockScore::logit ? 1.0 : 2.0;
    return passes * 2.0 * static_cast<double>(c_.heads * c_.head_dim) * span_pairs(c_.span, length);
  }

 private:
  MeanSelectorConfig c_;
};

}  // namespace

std::unique_ptr<Selector> mean_selector(const MeanSelectorConfig& config) {
  return std::make_unique<MeanSelector>(config);
}

double chosen_pairs(const BlockRule& rule, std::int64_t length) {
  double pairs = 0.0;
  for (std::int64_t t = 0; t < length; ++t) {
    const std::int64_t whole = rule.takes_all(t) ? t / rule.block : rule.selected - 1;
    pairs += static_cast<double>(whole * rule.block + t % rule.block + 1);
  }
  return pairs;
}

double span_pairs(KeySpan span, std::int64_t length) {
  double pairs = 0.0;
  for (std::int64_t t = 0; t < length; ++t) pairs += static_cast<double>(span.count(t + 1));
  return pairs;
}

}  // namespace weft
