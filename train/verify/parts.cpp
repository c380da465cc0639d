#include "train/verify/parts.h"

#include <algorithm>

#include "autograd/ops/linear_cross_entropy/linear_cross_entropy.h"
#include "autograd/ops/rms_norm/rms_norm.h"
#include "modules/feed_forward/feed_forward.h"

namespace weft {
namespace {

ModelPart mixer_part(const Recipe& recipe, const MixerTable& table) {
  const auto& pattern = recipe.model.pattern;
  const MixerSite site{.width = recipe.model.width,
                       .layers = recipe.model.layers,
                       .layer = std::ranges::find(pattern, table.name) - pattern.begin(),
                       .max_tokens = recipe.data.sequence_length};
  ModelPart part{.name = "mixer." + table.name,
                 .declare = {},
                 .bf16 = kBf16Recurrence,
                 .input_names = {"x"},
                 .output_names = {"output"},
                 .documents = table.type->limits.documents.empty(),
                 .flops = {}};
  part.declare = [table, site](const ParameterScope& scope) -> SpecimenFunction {
    const std::shared_ptr<Mixer> mixer = table.type->create(scope, site, table.options, table.where);
    return [mixer](Tape& tape, std::span<const Var> in, const SpecimenRow& row) {
      return std::vector{mixer->forward(tape, in[0], row.documents, nullptr)};
    };
  };
  part.flops = [table, site](std::int64_t T, std::int64_t L) {
    ParameterStore store;
    const MixerCost cost = table.type->create(ParameterScope(store), site, table.options, table.where)->cost(T, L);
    return cost.forward_flops + cost.backward_flops;
  };
  return part;
}

ModelPart feed_forward_part(const Recipe& recipe) {
  const FeedForwardShape shape{
      .width = recipe.model.width, .hidden = recipe.model.ffn_hidden(), .bias = recipe.model.ffn_bias};
  const std::int64_t layers = recipe.model.layers;
  return {.name = "feed-forward",
          .declare = [=](const ParameterScope& scope) -> SpecimenFunction {
            const auto network = std::make_shared<const FeedForward>(scope, shape, layers);
            return [network](Tape& tape, std::span<const Var> in, const SpecimenRow&) {
              return std::vector{network->forward(tape, in[0])};
            };
          },
          .bf16 = kBf16Recurrence,
          .input_names = {"x"},
          .output_names = {"output"},
          .flops =
              [=](std::int64_t T, std::int64_t) {
                return 18.0 * static_cast<double>(T) * static_cast<double>(shape.width) *
                       static_cast<double>(shape.hidden);
              }};
}

// The first norm of a model has no branch to add; every other has.
ModelPart norm_part(const Recipe& recipe, bool adds) {
  const std::int64_t width = recipe.model.width;
  const double eps = recipe.model.norm_eps;
  ModelPart part{.name = adds ? "residual and norm" : "norm",
                 .declare = {},
                 .bf16 = kBf16,
                 .input_names = {"x"},
                 .output_names = {"output"},
                 .flops = [=](std::int64_t T, std::int64_t) { return 16.0 * static_cast<double>(T * width); }};
  if (adds) {
    part.input_names = {"branch", "residual"};
    part.output_names = {"sum", "output"};
  }
  part.declare = [=](const ParameterScope& scope) -> SpecimenFunction {
    Parameter& weight = scope.declare("norm_w", {width}, ParameterKind::vector, Init::constant(1.0));
    return [=, &weight](Tape& tape, std::span<const Var> in, const SpecimenRow&) {
      if (!adds) return std::vector{rms_norm(tape, in[0], tape.parameter(weight), eps)};
      const auto [sum, y] = add_rms_norm(tape, in[0], in[1], tape.parameter(weight), eps);
      return std::vector{sum, y};
    };
  };
  return part;
}

ModelPart head_part(const Recipe& recipe, std::int64_t vocabulary) {
  const std::int64_t width = recipe.model.width;
  const double z_loss = recipe.model.z_loss;
  return {.name = "head and loss",
          .declare = [=](const ParameterScope& scope) -> SpecimenFunction {
            Parameter& head = scope.declare("head", {vocabulary, width}, ParameterKind::head, Init::normal(0.02));
            return [=, &head](Tape& tape, std::span<const Var> in, const SpecimenRow& row) {
              const Tensor losses = tape.empty({in[0].dim(0)}, accumulator_dtype(in[0].dtype()));
              const auto labelled =
                  std::ranges::count_if(row.labels.span<std::int32_t>(), [](auto l) { return l >= 0; });
              const LossTerms terms = linear_cross_entropy(tape, in[0], tape.parameter(head), tape.here(row.labels), {},
                                                           {.denominator = static_cast<double>(labelled),
                                                            .z_loss = z_loss,
                                                            .token_losses = losses,
                                                            .unit_seed = true});
              return std::vector{terms.loss, Tape::constant(losses)};
            };
          },
          .bf16 = kBf16,
          .input_names = {"x"},
          .output_names = {"loss", "loss of a token"},
          .loss = true,
          .flops =
              [=](std::int64_t T, std::int64_t) {
                return 6.0 * static_cast<double>(T) * static_cast<double>(width) * static_cast<double>(vocabulary);
              }};
}

}  // namespace

std::vector<ModelPart> parts_of(const Recipe& recipe, std::int64_t vocabulary) {
  std::vector<ModelPart> parts;
  for (const MixerTable& table : recipe.mixers) parts.push_back(mixer_part(recipe, table));
  if (recipe.model.ffn_hidden() > 0) parts.push_back(feed_forward_part(recipe));
  parts.push_back(norm_part(recipe, false));
  parts.push_back(norm_part(recipe, true));
  parts.push_back(head_part(recipe, vocabulary));
  return parts;
}

}  // namespace weft
