// The layer that ttt_linear and ttt_mlp share: projections, short convolutions, positions inside a batch, the memory,
// norm, gate, state.
//
//   q, k = rope(conv(x wq^T)), rope(conv(x wk^T))      v = x wv^T      rate = eta sigma(x wr^T + br) / d_h
//   y    = wo (gelu(x wg^T) * RMSNorm(memory(q, k, v, rate); norm_w))
//
// T tokens, N sequences, d model width, H heads, d_h head width, b batch length.
#pragma once

#include <optional>

#include "autograd/ops/rope/rope.h"
#include "modules/families/ttt/ttt_memory.h"
#include "modules/mixer.h"

namespace weft {

struct TttLayerConfig {
  enum class Gate : std::uint8_t { none, gelu };

  MixerSite site;
  std::int64_t heads, head_dim;
  std::int64_t hidden;  // m, width of the memory's hidden layer; 0: none
  std::int64_t batch;
  double learning_rate;  // eta
  std::int64_t conv;     // taps of the convolutions of queries and keys; 0: none
  Gate gate;
  std::optional<RopeConfig> rope;
};

// The keys that both mixers have, with the learning rate's default.
std::vector<OptionSpec> ttt_layer_options(double learning_rate);
// Throws config_error naming the option for values that do not fit together.
TttLayerConfig ttt_layer_config(const MixerSite& site, const Options& options, const std::string& where);

class TttState final : public MixerState {
 public:
  TttState(Tensor memory, Tensor conv_q, Tensor conv_k, const Place& place);
  std::unique_ptr<MixerState> clone() const override;
  std::size_t bytes() const override;

  Tensor memory;                    // [N, H, 2 P] weights and the pending sum of gradients
  Tensor conv_q, conv_k;            // [N, H d_h, taps - 1] or undefined
  std::vector<std::int32_t> phase;  // [N] tokens of the current batch

 private:
  Place place_;
};

class TttLayer final : public Mixer {
 public:
  TttLayer(const ParameterScope& scope, const TttLayerConfig& config);

  Var forward(Tape& tape, const Var& x, const DocumentsPtr& documents, MixerState* state) override;
  std::unique_ptr<MixerState> initial_state(std::int64_t sequences, const Place& place) const override;
  MixerCost cost(std::int64_t tokens, std::int64_t document_length) const override;
  double state_bytes(std::int64_t length) const override;

 private:
  std::int64_t inner_width() const { return c_.heads * c_.head_dim; }
  // A token's place in its inner batch; sequences continue `phase` tokens into one.
  struct Places {
    DocumentsPtr batches;  // as documents of their own
    Tensor table;          // or, for training on a GPU, i32 [T] where a recorded step finds those of any row
  };
  Places places(const Tape& tape, const DocumentsPtr& documents, const std::vector<std::int32_t>& phase) const;
  // x w^T, convolved and turned where the layer does so, as [T, H, d_h].
  Var features(Tape& tape, const Var& x, Parameter& weight, Parameter* filter, const DocumentsPtr& documents,
               const Places& places, const Tensor& tail) const;

  TttLayerConfig c_;
  Parameter *wq_, *wk_, *wv_, *wr_, *br_, *wo_, *norm_w_;
  Parameter *offset_, *gamma_, *beta_;
  Parameter *w1_ = nullptr, *b1_ = nullptr, *w2_, *b2_;
  Parameter *conv_q_ = nullptr, *conv_k_ = nullptr, *wg_ = nullptr;
  std::shared_ptr<const RopeTable> rope_;
};

}  // namespace weft
