// A block: a mixer and a feed-forward network, each with a norm before it and a residual around it.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "modules/feed_forward/feed_forward.h"
#include "modules/mixer.h"

namespace weft {

// Sees named activations as they are made; used to find where values stop being finite.
using ActivationProbe = std::function<void(const std::string& name, const Tensor& value)>;

// What a branch f is added to: x + f(norm(x)), or norm(x) + f(norm(x)).
enum class Residual : std::uint8_t { pre_norm, post_norm_input };

struct BlockOptions {
  std::int64_t ffn_hidden = 0;  // 0 leaves the feed-forward branch out
  bool ffn_bias = false;
  Residual residual = Residual::pre_norm;
  double norm_eps = 1e-6;
};

// The residual stream between blocks: its sum so far, and the last branch output, which the next norm adds in its own
// pass over memory. The stream's value is residual + branch.
struct ResidualStream {
  Var residual;
  Var branch;
};

class Block {
 public:
  Block(const ParameterScope& scope, const MixerType& mixer, const Options& options, const std::string& mixer_table,
        const MixerSite& site, const BlockOptions& block);

  // The first block's stream has no branch yet: its `branch` is undefined.
  ResidualStream forward(Tape& tape, const ResidualStream& x, const DocumentsPtr& documents, MixerState* state,
                         const ActivationProbe& probe) const;

  const Mixer& mixer() const { return *mixer_; }

 private:
  // Adds the pending branch, if any, and normalises: {what the next branch is added to, normalised}.
  std::array<Var, 2> advance(Tape& tape, const ResidualStream& x, Parameter& norm) const;

  std::string name_;
  BlockOptions options_;
  Parameter* mixer_norm_w_;
  std::unique_ptr<Mixer> mixer_;
  Parameter* ffn_norm_w_ = nullptr;
  std::unique_ptr<FeedForward> ffn_;
};

}  // namespace weft
