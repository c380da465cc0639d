#include "modules/language_model.h"

#include <algorithm>

#include "autograd/ops/embedding/embedding.h"
#include "autograd/ops/linear/linear.h"
#include "autograd/ops/rms_norm/rms_norm.h"
#include "autograd/ops/rows/rows.h"

namespace weft {

ModelState ModelState::clone() const {
  ModelState copy;
  for (const auto& layer : layers) copy.layers.push_back(layer->clone());
  copy.lengths = lengths;
  return copy;
}

std::size_t ModelState::bytes() const {
  std::size_t total = 0;
  for (const auto& layer : layers) total += layer->bytes();
  return total;
}

bool ModelState::replayable() const {
  return std::ranges::all_of(layers, [](const auto& layer) { return layer->replayable(); });
}

bool ModelState::make_room() {
  bool stays = true;
  for (const auto& layer : layers) stays = layer->make_room() && stays;
  return stays;
}

void ModelState::count_token() {
  for (const auto& layer : layers) layer->count_token();
}

LanguageModel::LanguageModel(const LanguageModelConfig& config) : config_(config) {
  WEFT_CHECK(!config.pattern.empty() && config.layers > 0, "a model needs layers and a pattern");
  const ParameterScope root(parameters_);
  embedding_ =
      &root.declare("embedding", {config.vocabulary, config.width}, ParameterKind::embedding, Init::normal(0.02));
  for (std::int64_t l = 0; l < config.layers; ++l) {
    const MixerChoice& choice = config.choice(l);
    const MixerSite site{.width = config.width,
                         .layers = config.layers,
                         .layer = l,
                         .max_tokens = config.max_tokens,
                         .norm_eps = config.norm_eps};
    blocks_.emplace_back(root.scope(fmt::format("layers.{}", l)), *choice.type, choice.options, choice.table, site,
                         BlockOptions{.ffn_hidden = config.ffn_hidden,
                                      .ffn_bias = config.ffn_bias,
                                      .residual = config.residual,
                                      .norm_eps = config.norm_eps});
  }
  final_norm_w_ = &root.declare("final_norm_w", {config.width}, ParameterKind::vector, Init::constant(1.0));
  head_ = config.tied
              ? embedding_
              : &root.declare("head", {config.vocabulary, config.width}, ParameterKind::head, Init::normal(0.02));
}

Var LanguageModel::forward(Tape& tape, const Tensor& tokens, const DocumentsPtr& documents, ModelState* state,
                           const ActivationProbe& probe) {
  ResidualStream stream{embedding(tape, tokens, tape.parameter(*embedding_)), {}};
  if (probe) probe("embedding output", stream.residual.value);
  for (std::size_t l = 0; l < blocks_.size(); ++l) {
    const Block& block = blocks_[l];
    MixerState* const layer_state = state == nullptr ? nullptr : state->layers[l].get();
    if (config_.recompute == Recompute::none || !tape.recording()) {
      stream = block.forward(tape, stream, documents, layer_state, probe);
      continue;
    }
    std::vector<Var> inputs{stream.residual};
    if (stream.branch.value.defined()) inputs.push_back(stream.branch);
    const auto span = [&block, documents](Tape& on, std::span<const Var> in) {
      const ResidualStream out = block.forward(on, {in[0], in.size() > 1 ? in[1] : Var{}}, documents, nullptr, {});
      return std::vector{out.residual, out.branch};
    };
    const std::vector<Var> outputs =
        config_.recompute == Recompute::selective ? tape.recompute_cheap(inputs, span) : tape.recompute(inputs, span);
    stream = {outputs[0], outputs[1]};
  }
  const Var hidden =
      add_rms_norm(tape, stream.branch, stream.residual, tape.parameter(*final_norm_w_), config_.norm_eps)[1];
  if (probe) probe("final norm output", hidden.value);
  return hidden;
}

LossTerms LanguageModel::loss(Tape& tape, const Tensor& tokens, const DocumentsPtr& documents, const Tensor& labels,
                              const Tensor& weights, const LossOptions& options) {
  const Var hidden = forward(tape, tokens, documents);
  return linear_cross_entropy(tape, hidden, tape.parameter(*head_), labels, weights, options);
}

ModelState LanguageModel::initial_state(std::int64_t sequences, const Place& place) const {
  ModelState state;
  for (const Block& block : blocks_) state.layers.push_back(block.mixer().initial_state(sequences, place));
  state.lengths.assign(static_cast<std::size_t>(sequences), 0);
  return state;
}

Tensor LanguageModel::logits(Tape& tape, const Var& hidden) {
  return linear_unrounded(tape, hidden.value, tape.parameter(*head_).value);
}

Tensor LanguageModel::logits_of_rows(Tape& tape, const Tensor& hidden, std::span<const std::int64_t> positions) {
  const auto map =
      std::make_shared<const RowMap>(std::vector<std::int32_t>(positions.begin(), positions.end()), hidden.dim(0));
  return logits(tape, take_rows(tape, {Tape::constant(hidden)}, map));
}

Tensor LanguageModel::logits_at(Tape& tape, const Tensor& tokens, const DocumentsPtr& documents,
                                std::span<const std::int64_t> positions) {
  WEFT_CHECK(!tape.recording(), "logits at positions are for inference");
  return logits_of_rows(tape, forward(tape, tokens, documents).value, positions);
}

Tensor LanguageModel::prefill(Tape& tape, const Tensor& tokens, const DocumentsPtr& documents, ModelState& state) {
  const auto N = static_cast<std::int64_t>(state.lengths.size());
  WEFT_CHECK(!tape.recording() && documents->count() == N, "prefill of {} documents into {} sequences",
             documents->count(), N);
  const Var hidden = forward(tape, tokens, documents, &state);
  std::vector<std::int64_t> last;
  for (std::int64_t n = 0; n < N; ++n) {
    WEFT_CHECK(documents->length(n) > 0, "prefill of an empty document");
    last.push_back(documents->end(n) - 1);
    state.lengths[static_cast<std::size_t>(n)] += documents->length(n);
  }
  return logits_of_rows(tape, hidden.value, last);
}

Tensor LanguageModel::decode(Tape& tape, const Tensor& tokens, const DocumentsPtr& documents, ModelState& state) {
  WEFT_CHECK(tokens.numel() == static_cast<std::int64_t>(state.lengths.size()), "{} tokens for {} sequences",
             tokens.numel(), state.lengths.size());
  return logits(tape, forward(tape, tokens, documents, &state));
}

Tensor LanguageModel::decode(Tape& tape, const Tensor& tokens, ModelState& state) {
  const Tensor result = decode(tape, tokens, Documents::single_tokens(state.lengths), state);
  for (std::int32_t& length : state.lengths) ++length;
  return result;
}

void LanguageModel::move_constants(const Place& place) const {
  for (const Block& block : blocks_) block.mixer().move_constants(place);
}

std::string LanguageModel::not_recordable() const {
  for (std::size_t l = 0; l < blocks_.size(); ++l) {
    const std::string reason = blocks_[l].mixer().not_recordable();
    if (!reason.empty()) return fmt::format("layers.{}: {}", l, reason);
  }
  return {};
}

ModelCost LanguageModel::cost(std::int64_t tokens, std::int64_t document_length) const {
  const auto T = static_cast<double>(tokens);
  const auto d = static_cast<double>(config_.width);
  ModelCost cost;
  for (const Block& block : blocks_) {
    const MixerCost mixer = block.mixer().cost(tokens, document_length);
    const double ffn = 6.0 * T * d * static_cast<double>(config_.ffn_hidden);
    cost.forward_flops += mixer.forward_flops + ffn;
    cost.backward_flops += mixer.backward_flops + 2.0 * ffn;
  }
  const double head = 2.0 * T * d * static_cast<double>(config_.vocabulary);
  cost.forward_flops += head;
  cost.backward_flops += 2.0 * head;
  return cost;
}

}  // namespace weft
