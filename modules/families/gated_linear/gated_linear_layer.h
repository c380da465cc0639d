// What the mixers of the family share: projections, the state, the normalised and gated output, decoding, costs.
//
//   q, k, v = features(x wq^T, x wk^T, x wv^T),  o = GatedLinear(q, k, v; decay(x))
//   y = wo (RMSNorm(o; norm_w) * a(gate)),       gate = x wg^T, or (x wg_a^T) wg_b^T at low rank
//
// A mixer gives the features and the decay. T tokens, N sequences, d model width, H heads, d_k and d_v head widths.
#pragma once

#include "modules/families/gated_linear/gated_linear.h"
#include "modules/mixer.h"

namespace weft {

struct GatedLinearLayerConfig {
  enum class Norm : std::uint8_t { joint, per_head };  // over H d_v elements, norm_w [H d_v]; over d_v, norm_w [d_v]
  enum class Gate : std::uint8_t { sigmoid, silu };

  MixerSite site;
  std::int64_t heads, d_k, d_v;
  DecayKind decay;
  double scale;
  Norm norm;
  Gate gate;
  std::int64_t gate_rank;  // 0: full
  // What features and decay add: multiply-adds of their products and elements that they keep, for each token.
  std::int64_t extra_products = 0;
  std::int64_t extra_saved = 0;
};

// The keys that every mixer of the family has: heads, head_dim, value_dim.
std::vector<OptionSpec> gated_linear_head_options();

// Matrix states of N sequences.
class GatedLinearState final : public MixerState {
 public:
  explicit GatedLinearState(Tensor matrices_) : matrices(std::move(matrices_)) {}
  std::unique_ptr<MixerState> clone() const override;
  std::size_t bytes() const override { return matrices.nbytes(); }

  Tensor matrices;  // [N, H, d_k, d_v]
};

// Log decays of the heads that are constants, in the type of the activations.
class ConstantDecay {
 public:
  explicit ConstantDecay(const std::vector<double>& log_decays);
  Var in(DType dtype) const;

 private:
  Tensor f64_, f32_;  // [H]
};

class GatedLinearLayer : public Mixer {
 public:
  Var forward(Tape& tape, const Var& x, const DocumentsPtr& documents, MixerState* state) override;
  Tensor decode(Tape& tape, const Tensor& x, std::span<const std::int32_t> positions, MixerState& state) override;
  std::unique_ptr<MixerState> initial_state(std::int64_t sequences, DType dtype) const override;
  MixerCost cost(std::int64_t tokens, std::int64_t document_length) const override;
  double state_bytes(std::int64_t length) const override;

 protected:
  struct Heads {
    Var q, k, v;  // [T, H, d_k], [T, H, d_k], [T, H, d_v]
  };

  GatedLinearLayer(const ParameterScope& scope, const GatedLinearLayerConfig& config);
  // From the projections to what enters the recurrence. Decoding calls it with documents of one token each.
  virtual Heads features(Tape& tape, const Heads& projected, const DocumentsPtr& documents) = 0;
  // Log decay [H], [T,H] or [T,H,d_k].
  virtual Var decay(Tape& tape, const Var& x) = 0;

 private:
  Heads project(Tape& tape, const Var& x, const DocumentsPtr& documents);
  Var output(Tape& tape, const Var& x, const Var& o);
  Tensor& matrices(MixerState& state, std::int64_t sequences) const;

  GatedLinearLayerConfig config_;
  Parameter *wq_, *wk_, *wv_, *wo_, *norm_w_;
  Parameter* wg_ = nullptr;                      // full gate
  Parameter *wg_a_ = nullptr, *wg_b_ = nullptr;  // low-rank gate
};

}  // namespace weft
