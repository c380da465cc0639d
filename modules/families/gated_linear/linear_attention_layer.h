// Normalised linear attention, a softmax whose exponential is a product of features:
//
//   q, k, v = prepared(x wq^T, x wk^T, x wv^T),   s_tj = phi(q_t) . phi(k_j)
//   y = wo ( sum_(j<=t) s_tj v_j / sum_(j<=t) s_tj )
//
// Nothing decays; numerators and denominators go through the recurrence together (denominators.h), features are built
// chunk by chunk inside it. There is no other norm and no gate.
//
// T tokens, d model width, H heads, d_x width of queries and keys before their features, d_v of values.
#pragma once

#include "modules/families/gated_linear/gated_linear_mixer.h"

namespace weft {

struct LinearAttentionConfig {
  MixerSite site;
  std::int64_t heads, d_x, d_v;
  FeatureMap map;
  // What prepared() and normalised() add: multiply-adds of their products and elements that they keep, for each token.
  std::int64_t extra_products = 0;
  std::int64_t extra_saved = 0;
  std::vector<GatedLinearSizes::Carried> carried =
      {};  // what normalised() carries besides the matrices: shapes of one sequence
};

class LinearAttentionLayer : public GatedLinearMixer {
 public:
  LinearAttentionLayer(const ParameterScope& scope, const LinearAttentionConfig& config);

 protected:
  // Log decays 0 of all heads.
  Var no_decay(const Tape& tape, DType dtype) const { return no_decay_->on(tape, dtype); }
  // From the projections, q and k of d_x channels, to what the feature map sees.
  virtual Heads prepared(Tape&, const Heads& projected, const DocumentsPtr&) { return projected; }
  // sums [T, H, d_v+1] (numerators, denominators) -> o [T, H, d_v]; `values` [T, H, d_v+1] are v and the ones.
  virtual Var normalised(Tape& tape, const Var& sums, const Var& values, const DocumentsPtr& documents,
                         GatedLinearState* state);

 private:
  Var mix(Tape& tape, const Var& x, const DocumentsPtr& documents, GatedLinearState* state) override;

  LinearAttentionConfig config_;
  std::shared_ptr<const ConstantVector> no_decay_;
  HeadProjections projections_;
  Parameter* wo_;
};

}  // namespace weft
