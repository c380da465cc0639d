#include "modules/mixers/mala/mala.h"

#include <cmath>

#include "autograd/transfer.h"
#include "modules/families/gated_linear/denominators.h"
#include "modules/families/gated_linear/linear_attention_layer.h"

namespace weft {
namespace {

class Mala final : public LinearAttentionLayer {
 public:
  Mala(const ParameterScope& scope, const LinearAttentionConfig& config, double share)
      : LinearAttentionLayer(scope, config), share_(share) {}

 private:
  // The sum of all values so far, and their number, are a recurrence of their own: queries and keys of one channel, 1.
  Var normalised(Tape& tape, const Var& sums, const Var& values, const DocumentsPtr& documents,
                 GatedLinearState* state) override {
    const Tensor one = tape.empty({values.dim(0), values.dim(1), 1}, values.dtype());
    fill(one, 1.0, tape.stream());
    const Var ones = Tape::constant(one);
    const Var totals = recurrence(tape, {.q = ones, .k = ones, .v = values, .decay = no_decay(tape, values.dtype())},
                                  documents, state != nullptr ? state->parts[1] : Tensor{});
    return magnitude_aware(tape, sums, totals, share_);
  }

  double share_;  // of the difference of scores from their mean: denominators.h
};

std::unique_ptr<Mixer> create(const ParameterScope& scope, const MixerSite& site, const Options& options,
                              const std::string&) {
  const std::int64_t heads = options.integer("heads");
  const std::int64_t d_x = options.integer("head_dim");
  const std::int64_t d_v = options.integer("value_dim") == 0 ? d_x : options.integer("value_dim");
  const double share = options.text("scores") == "mean" ? 1.0 / std::sqrt(static_cast<double>(d_x)) : 0.0;
  // The second recurrence, with d_k = 1: states and masked products as GatedLinearMixer::cost counts them, halved
  // because a product is two operations.
  const std::int64_t totals = 2 * (d_v + 1) + (gated_linear_chunk(DecayKind::constant) + 16) * (d_v + 2) / 2;
  return std::make_unique<Mala>(scope,
                                LinearAttentionConfig{.site = site,
                                                      .heads = heads,
                                                      .d_x = d_x,
                                                      .d_v = d_v,
                                                      .map = FeatureMap::elu_plus_one,
                                                      .extra_products = heads * totals,
                                                      .extra_saved = heads * (d_v + 2),  // totals, ones
                                                      .carried = {{{heads, 1, d_v + 1}}}},
                                share);
}

MixerType make_type() {
  MixerType type{.name = "mala",
                 .summary = "linear attention whose scores feel the magnitude of queries (MALA), causal",
                 .options = gated_linear_head_options(),
                 .context_parallel = ContextParallel::state,
                 .limits = {},
                 .create = create};
  type.options.push_back({.key = "scores",
                          .default_value = std::string("sum"),
                          .help = "scores of keys: products of features, as the paper writes them, or those divided by "
                                  "sqrt(head_dim) and the tokens so far, as its code does, for outputs that do not "
                                  "grow with the document",
                          .choices = {"sum", "mean"}});
  return type;
}

}  // namespace

const MixerType& mala_mixer() {
  static const MixerType type = make_type();
  return type;
}

}  // namespace weft
