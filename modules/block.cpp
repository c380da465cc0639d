#include "modules/block.h"

#include "autograd/ops/rms_norm/rms_norm.h"

namespace weft {

Block::Block(const ParameterScope& scope, const MixerType& mixer, const Options& options,
             const std::string& mixer_table, const MixerSite& site, const BlockOptions& block)
    : name_(fmt::format("layers.{}", site.layer)),
      options_(block),
      mixer_norm_w_(&scope.declare("mixer_norm_w", {site.width}, ParameterKind::vector, Init::constant(1.0))),
      mixer_(mixer.create(scope.scope("mixer"), site, options, mixer_table)) {
  if (block.ffn_hidden == 0) return;
  ffn_norm_w_ = &scope.declare("ffn_norm_w", {site.width}, ParameterKind::vector, Init::constant(1.0));
  ffn_ = std::make_unique<FeedForward>(
      scope.scope("ffn"), FeedForwardShape{.width = site.width, .hidden = block.ffn_hidden, .bias = block.ffn_bias},
      site.layers);
}

std::array<Var, 2> Block::advance(Tape& tape, const ResidualStream& x, Parameter& norm) const {
  const Var weight = tape.parameter(norm);
  std::array<Var, 2> next;
  if (x.branch.value.defined()) {
    next = add_rms_norm(tape, x.branch, x.residual, weight, options_.norm_eps);
  } else {
    next = {x.residual, rms_norm(tape, x.residual, weight, options_.norm_eps)};
  }
  if (options_.residual == Residual::post_norm_input) next[0] = next[1];
  return next;
}

ResidualStream Block::forward(Tape& tape, const ResidualStream& x, const DocumentsPtr& documents, MixerState* state,
                              const ActivationProbe& probe) const {
  const auto [mixer_in, mixer_x] = advance(tape, x, *mixer_norm_w_);
  ResidualStream stream{mixer_in, mixer_->forward(tape, mixer_x, documents, state)};
  if (probe) probe(name_ + ".mixer output", stream.branch.value);
  if (ffn_ == nullptr) return stream;
  const auto [ffn_in, ffn_x] = advance(tape, stream, *ffn_norm_w_);
  stream = {ffn_in, ffn_->forward(tape, ffn_x)};
  if (probe) probe(name_ + ".ffn output", stream.branch.value);
  return stream;
}

}  // namespace weft
