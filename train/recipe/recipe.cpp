#include "train/recipe/recipe.h"

#include <algorithm>
#include <bit>

#include "train/recipe/schema.h"

namespace weft {

std::int64_t ModelSection::ffn_hidden() const {
  constexpr std::int64_t kMultiple = 64;
  if (ffn != kAutomatic) return ffn;
  return (8 * width + 3 * kMultiple - 1) / (3 * kMultiple) * kMultiple;
}

const MixerTable& Recipe::mixer(std::string_view name) const {
  const auto it = std::ranges::find(mixers, name, &MixerTable::name);
  WEFT_CHECK(it != mixers.end(), "the recipe has no mixer table {}", name);
  return *it;
}

LanguageModelConfig language_model_config(const Recipe& recipe, std::int64_t data_vocabulary) {
  const ModelSection& model = recipe.model;
  if (model.vocabulary != 0 && model.vocabulary < data_vocabulary) {
    config_error(
        "model.vocabulary is {}, but the data's tokenizer has {} ids; leave it out, or choose one that is not smaller",
        model.vocabulary, data_vocabulary);
  }
  LanguageModelConfig config{.vocabulary = model.vocabulary == 0 ? data_vocabulary : model.vocabulary,
                             .width = model.width,
                             .layers = model.layers,
                             .ffn_hidden = model.ffn_hidden(),
                             .pattern = {},
                             .tied = model.tied,
                             .norm_eps = model.norm_eps,
                             .recompute = model.recompute,
                             .max_tokens = recipe.data.sequence_length,
                             .ffn_bias = model.ffn_bias,
                             .residual = model.residual};
  for (const std::string& name : model.pattern) {
    const MixerTable& table = recipe.mixer(name);
    config.pattern.push_back({table.type, table.options, table.where});
  }
  return config;
}

std::uint64_t data_seed(const Recipe& recipe) {
  return static_cast<std::uint64_t>(recipe.data.seed >= 0 ? recipe.data.seed : recipe.run.seed);
}

std::unique_ptr<Task> make_task(const TaskTable& table, std::uint64_t seed) {
  return table.type->create(table.options, seed, table.where);
}

RowOptions row_options(const Recipe& recipe) {
  const DataSection& data = recipe.data;
  return {.length = data.sequence_length,
          .packing = data.packing,
          .intra_document = data.intra_document,
          .anchor = data.anchor,
          .max_docs = data.max_docs,
          .min_bucket_log2 = std::countr_zero(static_cast<std::uint64_t>(data.min_bucket))};
}

SamplerOptions sampler_options(const Recipe& recipe) {
  const DataSection& data = recipe.data;
  SamplerOptions options;
  options.seed = data_seed(recipe);
  options.rows_per_step = data.rows_per_step();
  options.rows = row_options(recipe);
  options.cycles = data.cycles;
  options.curriculum = data.curriculum;
  options.reverse_curriculum = data.reverse_curriculum;
  options.error_when_exhausted = data.on_exhausted == OnExhausted::error;
  for (const std::string& range : data.skip_steps) options.skip_steps.push_back(parse_step_range(range).value());
  return options;
}

std::vector<SourceOptions> source_options(const Recipe& recipe) {
  const DataSection& data = recipe.data;
  if (data.mixture.empty()) return {{data.train, {{0, 1.0}}, data.max_epochs}};
  std::vector<SourceOptions> sources;
  for (const MixtureSource& source : data.mixture) {
    SourceOptions options{
        source.path, {{0, source.weight}}, source.max_epochs >= 0 ? source.max_epochs : data.max_epochs};
    if (const auto points = parse_points(source.weight_points); points && !points->empty()) {
      options.weight.clear();
      for (const auto& [tokens, weight] : *points) options.weight.push_back({tokens, weight});
    }
    sources.push_back(std::move(options));
  }
  return sources;
}

LearningRateSchedule schedule_of(const Recipe& recipe) {
  const OptimizerSection& optimizer = recipe.optimizer;
  const bool to_a_tenth = optimizer.schedule == ScheduleLaw::cosine || optimizer.schedule == ScheduleLaw::linear;
  LearningRateSchedule schedule{
      .law = optimizer.schedule,
      .steps = recipe.run.steps,
      .warmup_steps = optimizer.warmup_steps,
      .decay_fraction = optimizer.decay_fraction,
      .final_fraction = optimizer.final_fraction >= 0 ? optimizer.final_fraction : (to_a_tenth ? 0.1 : 0.0)};
  if (const auto points = parse_points(optimizer.schedule_points)) {
    for (const auto& [step, factor] : *points) schedule.points.push_back({step, factor});
  }
  return schedule;
}

OptimizerOptions optimizer_options(const Recipe& recipe) {
  const OptimizerSection& section = recipe.optimizer;
  const MuonTable& muon = section.muon;
  const bool original = muon.scale == MuonScale::original;
  const auto given_or = [](double value, double otherwise) { return value >= 0 ? value : otherwise; };
  OptimizerOptions options{
      .rule = section.name,
      .learning_rate = section.learning_rate,
      .weight_decay = section.weight_decay,
      .adamw = {.beta1 = section.beta1,
                .beta2 =
                    section.beta2 > 0 ? section.beta2 : automatic_beta2(static_cast<double>(recipe.data.batch_tokens)),
                .eps = section.eps},
      .muon = {.momentum = muon.momentum,
               .scale = muon.scale,
               .scale_factor = given_or(muon.scale_factor, muon.scale == MuonScale::rms ? 0.2 : 1.0),
               .learning_rate = given_or(muon.learning_rate, original ? 0.02 : section.learning_rate),
               .weight_decay = given_or(muon.weight_decay, original ? 0.0 : section.weight_decay)},
      .groups = {}};
  for (const GroupTable& group : section.groups) {
    GroupRule rule{.match = group.match, .lr_mult = group.lr_mult, .split = group.split};
    for (const UpdateRule named : {UpdateRule::adamw, UpdateRule::muon, UpdateRule::frozen}) {
      if (group.optimizer == name_of(named)) rule.rule = named;
    }
    if (group.wd_mult >= 0) rule.wd_mult = group.wd_mult;
    if (group.beta1 >= 0) rule.beta1 = group.beta1;
    if (group.beta2 >= 0) rule.beta2 = group.beta2;
    options.groups.push_back(std::move(rule));
  }
  return options;
}

bool spike_guard_on(const Recipe& recipe) {
  constexpr std::int64_t kLongRun = 10000;
  const SpikeGuardUse use = recipe.optimizer.spike_guard;
  return use == SpikeGuardUse::on || (use == SpikeGuardUse::automatic && recipe.run.steps > kLongRun);
}

std::int64_t rows_per_micro_batch(const Recipe& recipe) {
  return std::max<std::int64_t>(1, recipe.parallel.micro_batch_tokens / recipe.data.sequence_length);
}

}  // namespace weft
