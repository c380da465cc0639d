#include "modules/block.h"

#include "autograd/ops/elementwise/elementwise.h"
#include "autograd/ops/rms_norm/rms_norm.h"

namespace weft {

Block::Block(const ParameterScope& scope, const MixerType& mixer, const Options& options,
             const std::string& mixer_table, const MixerSite& site, std::int64_t ffn_hidden, double norm_eps)
    : name_(fmt::format("layers.{}", site.layer)),
      norm_eps_(norm_eps),
      mixer_norm_w_(&scope.declare("mixer_norm_w", {site.width}, ParameterKind::vector, Init::constant(1.0))),
      mixer_(mixer.create(scope.scope("mixer"), site, options, mixer_table)) {
  if (ffn_hidden == 0) return;
  ffn_norm_w_ = &scope.declare("ffn_norm_w", {site.width}, ParameterKind::vector, Init::constant(1.0));
  ffn_ = std::make_unique<FeedForward>(scope.scope("ffn"), site.width, ffn_hidden, site.layers);
}

std::array<Var, 2> Block::advance(Tape& tape, const ResidualStream& x, Parameter& norm) const {
  if (x.branch.value.defined()) return add_rms_norm(tape, x.branch, x.residual, tape.parameter(norm), norm_eps_);
  return {x.residual, rms_norm(tape, x.residual, tape.parameter(norm), norm_eps_)};
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

Tensor Block::decode(Tape& tape, const Tensor& x, std::span<const std::int32_t> positions, MixerState& state) const {
  const Var in = Tape::constant(x);
  const Var normed = rms_norm(tape, in, tape.parameter(*mixer_norm_w_), norm_eps_);
  const Var mixed = Tape::constant(mixer_->decode(tape, normed.value, positions, state));
  if (ffn_ == nullptr) return add(tape, in, mixed).value;
  const auto [sum, ffn_x] = add_rms_norm(tape, mixed, in, tape.parameter(*ffn_norm_w_), norm_eps_);
  return add(tape, sum, ffn_->forward(tape, ffn_x)).value;
}

}  // namespace weft
