// A decoder-only language model whose layers follow a pattern of mixers.
//
// T tokens of a packed row, N sequences, V vocabulary, d width.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "autograd/ops/linear_cross_entropy/linear_cross_entropy.h"
#include "modules/block.h"

namespace weft {

// One entry of the pattern: a mixer with its options, and the recipe table they came from (for messages).
struct MixerChoice {
  const MixerType* type;
  Options options;
  std::string table;
};

// What backward computes again instead of keeping it: nothing, what is cheap (norms, gates, activations, rotations), or
// every block. The bits are the same.
enum class Recompute : std::uint8_t { none, selective, block };

struct LanguageModelConfig {
  std::int64_t vocabulary;
  std::int64_t width;
  std::int64_t layers;
  std::int64_t ffn_hidden;           // 0: no feed-forward branches
  std::vector<MixerChoice> pattern;  // layer l uses pattern[l mod size]
  bool tied = true;                  // the head is the embedding table
  double norm_eps = 1e-6;
  Recompute recompute = Recompute::none;
  std::int64_t max_tokens = 0;  // longest document of training
  bool ffn_bias = false;
  Residual residual = Residual::pre_norm;

  // The mixer of a layer.
  const MixerChoice& choice(std::int64_t layer) const {
    return pattern[static_cast<std::size_t>(layer) % pattern.size()];
  }
};

// What a model remembers of N sequences.
struct ModelState {
  std::vector<std::unique_ptr<MixerState>> layers;
  std::vector<std::int32_t> lengths;  // [N] tokens so far

  ModelState clone() const;
  std::size_t bytes() const;
  // Those of all layers; see MixerState. The lengths are left to the caller.
  bool replayable() const;
  bool make_room();
  void count_token();
};

// Work of one training pass over T tokens in documents of length L.
struct ModelCost {
  double forward_flops = 0.0;
  double backward_flops = 0.0;
  double total() const { return forward_flops + backward_flops; }
};

class LanguageModel {
 public:
  explicit LanguageModel(const LanguageModelConfig& config);

  // Allocates the parameters and draws their first values: at a place, or in host memory.
  void initialise(std::uint64_t seed, const Place& place) { parameters_.initialise(seed, place); }
  void initialise(std::uint64_t seed, DType dtype) { parameters_.initialise(seed, dtype); }

  // tokens i32 [T] -> final normalised hidden states [T, d].
  Var forward(Tape& tape, const Tensor& tokens, const DocumentsPtr& documents, ModelState* state = nullptr,
              const ActivationProbe& probe = {});
  // Next-token loss; see linear_cross_entropy for labels, weights and the terms.
  LossTerms loss(Tape& tape, const Tensor& tokens, const DocumentsPtr& documents, const Tensor& labels,
                 const Tensor& weights, const LossOptions& options);

  // Logits at some positions of a row, without a state: positions [n] -> [n, V]. All logits are of accumulator_dtype.
  Tensor logits_at(Tape& tape, const Tensor& tokens, const DocumentsPtr& documents,
                   std::span<const std::int64_t> positions);

  ModelState initial_state(std::int64_t sequences, const Place& place) const;
  // Feeds the documents of a row to a state, document n to sequence n, and returns the logits after the last token of
  // each: [N, V]. Every document must have a token.
  Tensor prefill(Tape& tape, const Tensor& tokens, const DocumentsPtr& documents, ModelState& state);
  // One more token for each sequence: tokens i32 [N] -> logits [N, V].
  Tensor decode(Tape& tape, const Tensor& tokens, ModelState& state);
  // The same, with the row's documents given; the lengths of `state` are left to the caller.
  Tensor decode(Tape& tape, const Tensor& tokens, const DocumentsPtr& documents, ModelState& state);

  // Mixer::move_constants of all layers: once, before the first step at a place on a GPU.
  void move_constants(const Place& place) const;
  // Why training steps cannot be recorded, naming the first layer: Mixer::not_recordable. Empty: they can.
  std::string not_recordable() const;
  ParameterStore& parameters() { return parameters_; }
  const LanguageModelConfig& config() const { return config_; }
  const Block& block(std::int64_t layer) const { return blocks_[static_cast<std::size_t>(layer)]; }
  ModelCost cost(std::int64_t tokens, std::int64_t document_length) const;

 private:
  // In accumulator_dtype: what follows looks at small differences.
  Tensor logits(Tape& tape, const Var& hidden);
  // Of the hidden states at `positions`.
  Tensor logits_of_rows(Tape& tape, const Tensor& hidden, std::span<const std::int64_t> positions);

  LanguageModelConfig config_;
  ParameterStore parameters_;
  Parameter* embedding_;
  std::vector<Block> blocks_;
  Parameter* final_norm_w_;
  Parameter* head_;  // the embedding when tied
};

}  // namespace weft
