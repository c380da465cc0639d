// Gated linear mixers with the usual projections and a normalised, gated output:
//
//   q, k, v, g = inputs(x wq^T, x wk^T, x wv^T; x),  o = GatedLinear(q, k, v; g)
//   y = wo (norm(o) * a(gate)),                      gate = x wg^T, or (x wg_a^T) wg_b^T at low rank
//
// A mixer gives inputs(). T tokens, d model width, H heads, d_k and d_v head widths.
#pragma once

#include "modules/families/gated_linear/gated_linear_mixer.h"

namespace weft {

struct GatedLinearLayerConfig {
  // RMS norm over H d_v elements, norm_w [H d_v]; over d_v, norm_w [d_v]; over H d_v without a weight.
  enum class Norm : std::uint8_t { joint, per_head, simple };
  enum class Gate : std::uint8_t { sigmoid, silu, linear, none };  // linear: the gate's projection itself

  MixerSite site;
  std::int64_t heads, d_k, d_v;
  DecayKind decay;
  Norm norm;
  Gate gate;
  std::int64_t gate_rank = 0;  // 0: full
  // Width of projected queries and keys where inputs() widens them to d_k; 0: d_k.
  std::int64_t projected_width = 0;
  // What inputs() adds: multiply-adds of its products and elements that it keeps, for each token.
  std::int64_t extra_products = 0;
  std::int64_t extra_saved = 0;

  std::int64_t key_width() const { return projected_width == 0 ? d_k : projected_width; }
};

class GatedLinearLayer : public GatedLinearMixer {
 protected:
  GatedLinearLayer(const ParameterScope& scope, const GatedLinearLayerConfig& config);
  // From the projections, q and k of key_width channels, and x to what enters the recurrence.
  virtual Inputs inputs(Tape& tape, const Var& x, const Heads& projected, const DocumentsPtr& documents) = 0;

 private:
  Var mix(Tape& tape, const Var& x, const DocumentsPtr& documents, GatedLinearState* state) override;
  Var normed(Tape& tape, const Var& o) const;
  Var gated(Tape& tape, const Var& x, const Var& normed) const;

  GatedLinearLayerConfig config_;
  HeadProjections projections_;
  Parameter* wo_;
  Parameter* norm_w_ = nullptr;                  // null for the simple norm,
  std::shared_ptr<const ConstantVector> ones_;   // which has ones in its place
  Parameter* wg_ = nullptr;                      // full gate
  Parameter *wg_a_ = nullptr, *wg_b_ = nullptr;  // low-rank gate
};

}  // namespace weft
