// What the mixers that share one set of keys and values between choosing and attending have in common: projections,
// state, decoding, costs. The parameters are those of the mixer `attention`.
//
//   q, k, v = x wq^T, x wk^T, x wv^T;   q, k = RMSNorm, RoPE;   y = block_sparse_attention(q, k, v, selector(q, k))
//   wo^T
#pragma once

#include "modules/families/block_sparse/selector.h"
#include "modules/families/block_sparse/sparse_options.h"
#include "modules/mixer.h"

namespace weft {

struct SparseAttentionConfig {
  std::int64_t width, layers;
  block_sparse::SparseHeads heads;
  bool qk_norm;
};

// The keys that every mixer of this layer has, and their meaning. Throws config_error naming `where`.
std::vector<OptionSpec> sparse_attention_options();
SparseAttentionConfig sparse_attention_config(const MixerSite& site, const Options& options, const std::string& where);

class SparseAttentionLayer final : public Mixer {
 public:
  // No selector: full attention.
  SparseAttentionLayer(const ParameterScope& scope, const SparseAttentionConfig& config,
                       std::unique_ptr<Selector> selector);

  Var forward(Tape& tape, const Var& x, const DocumentsPtr& documents, MixerState* state) override;
  std::unique_ptr<MixerState> initial_state(std::int64_t sequences, const Place& place) const override;
  MixerCost cost(std::int64_t tokens, std::int64_t document_length) const override;
  double state_bytes(std::int64_t length) const override;

 private:
  Var heads_of(Tape& tape, const Var& x, Parameter& weight, std::int64_t heads) const;
  Var rotated(Tape& tape, const DocumentsPtr& documents, const Var& x, Parameter* norm_w) const;
  Tensor continued(Tape& tape, const SelectorInputs& in, MixerState& state) const;

  SparseAttentionConfig c_;
  std::unique_ptr<Selector> selector_;
  Parameter *wq_, *wk_, *wv_, *wo_;
  Parameter *q_norm_w_ = nullptr, *k_norm_w_ = nullptr;
  std::shared_ptr<const RopeTable> rope_;
};

}  // namespace weft
