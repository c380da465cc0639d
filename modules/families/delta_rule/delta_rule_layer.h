// What the mixers of the family share: projections, short convolutions, norms, write strengths, the state, the
// normalised and gated output, decoding, costs.
//
//   q, k = L2(silu(conv(x wq^T))), L2(silu(conv(x wk^T))),  v = silu(conv(x wv^T))
//   beta = sigma(x wb^T), or twice that
//   o = DeltaRule(q, k, v; decay(x), beta)
//   y = wo (RMSNorm_head(o; norm_w) * a(gate)),  gate = x wg^T, (x wg_a^T) wg_b^T (+ bg) at low rank, or none
//
// A mixer gives the decay. T tokens, N sequences, d model width, H value heads, H_K key heads, d_k and d_v head widths,
// w taps of the convolutions.
#pragma once

#include "modules/families/delta_rule/delta_rule.h"
#include "modules/mixer.h"

namespace weft {

struct DeltaRuleLayerConfig {
  enum class Gate : std::uint8_t { none, sigmoid, silu };

  MixerSite site;
  std::int64_t key_heads, value_heads, d_k, d_v;
  std::int64_t taps;           // 0: no convolutions
  bool negative_eigenvalues;   // beta up to 2
  double norm_eps;             // of the output norm
  Gate gate = Gate::silu;      // of the output
  std::int64_t gate_rank = 0;  // 0: full
  bool gate_bias = true;       // of a low-rank gate
  // What the decay adds: multiply-adds of its products and elements that it keeps, for each token.
  std::int64_t decay_products = 0;
  std::int64_t decay_saved = 0;
};

// The keys that every mixer of the family has: heads, value_heads, head_dim, value_dim, conv_width,
// negative_eigenvalues, norm_eps; and what they say. Throws config_error for values that do not fit together.
std::vector<OptionSpec> delta_rule_layer_options();
DeltaRuleLayerConfig delta_rule_layer_config(const MixerSite& site, const Options& options, const std::string& where);

// What N sequences leave behind: matrix states, and the inputs of the convolutions before the next token.
class DeltaRuleState final : public MixerState {
 public:
  DeltaRuleState(const DeltaRuleLayerConfig& config, std::int64_t sequences, const Place& place);
  std::unique_ptr<MixerState> clone() const override;
  std::size_t bytes() const override;
  bool replayable() const override { return true; }

  Tensor matrices;                // [N, H, d_k, d_v]
  Tensor conv_q, conv_k, conv_v;  // [N, channels, w - 1]; undefined without convolutions

 private:
  Place place_;
};

class DeltaRuleLayer : public Mixer {
 public:
  Var forward(Tape& tape, const Var& x, const DocumentsPtr& documents, MixerState* state) override;
  std::unique_ptr<MixerState> initial_state(std::int64_t sequences, const Place& place) const override;
  MixerCost cost(std::int64_t tokens, std::int64_t document_length) const override;
  double state_bytes(std::int64_t length) const override;

 protected:
  DeltaRuleLayer(const ParameterScope& scope, const DeltaRuleLayerConfig& config);
  // Log decay [T,H] or [T,H,d_k], or {} for none.
  virtual Var decay(Tape& tape, const Var& x) = 0;
  const DeltaRuleLayerConfig& config() const { return config_; }

 private:
  struct Inputs {
    Var q, k, v, g, beta;  // [T,H_K,d_k], [T,H_K,d_k], [T,H,d_v], decay(), [T,H]
  };
  Inputs inputs(Tape& tape, const Var& x, const DocumentsPtr& documents, DeltaRuleState* state);
  Var convolved(Tape& tape, const Var& x, Parameter& weight, Parameter* taps, const DocumentsPtr& documents,
                const Tensor& state);
  Var output_gate(Tape& tape, const Var& x);
  Var output(Tape& tape, const Var& x, const Var& o);
  DeltaRuleState& own(MixerState& state, std::int64_t sequences) const;
  double scale() const;

  DeltaRuleLayerConfig config_;
  Parameter *wq_, *wk_, *wv_, *wb_, *wo_, *norm_w_;
  Parameter *conv_q_ = nullptr, *conv_k_ = nullptr, *conv_v_ = nullptr;
  Parameter* wg_ = nullptr;                                      // full gate
  Parameter *wg_a_ = nullptr, *wg_b_ = nullptr, *bg_ = nullptr;  // low-rank gate
};

}  // namespace weft
