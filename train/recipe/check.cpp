// What the keys of a recipe mean together.
#include <algorithm>
#include <array>
#include <bit>
#include <set>

#include "checkpoints/huggingface/target.h"
#include "train/recipe/schema.h"

namespace weft {
namespace {

class Checker {
 public:
  Checker(const Recipe& recipe, const std::vector<std::string>& tables, const RecipePlaces& places,
          RecipeProblems& problems)
      : recipe_(recipe), tables_(tables), places_(places), problems_(problems) {}

  void check() {
    check_run();
    check_model();
    check_data();
    check_optimizer();
    check_parallel();
  }

 private:
  template <class... Args>
  void problem(const std::string& key, fmt::format_string<Args...> format, Args&&... args) {
    problems_.add(places_.find(key), fmt::format(format, std::forward<Args>(args)...));
  }

  void check_run() {
    const std::string& name = recipe_.run.name;
    const auto legal = [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_' ||
             c == '.';
    };
    if (name.empty() || name[0] == '.' || !std::ranges::all_of(name, legal)) {
      problem("run.name", "the run's name {} is to be a folder: letters, digits, \"-\", \"_\" and \".\"; set run.name",
              toml_string(name));
    }
  }

  void check_model() {
    const ModelSection& model = recipe_.model;
    if (model.pattern.empty()) {
      problem("model.pattern", "pattern in [model] is empty; expected names of [mixer.NAME] tables");
    }
    std::set<std::string> used;
    for (const std::string& name : model.pattern) {
      if (!used.insert(name).second || std::ranges::find(tables_, name) != tables_.end()) continue;
      const std::string near = nearest(name, tables_);
      problem("model.pattern", "pattern in [model] names \"{}\", but there is no table [mixer.{}]{}", name, name,
              near.empty() ? "" : fmt::format("; did you mean \"{}\"?", near));
    }
    // A pattern given on the command line may leave tables of the file unused.
    if (!places_.is_override("model.pattern")) {
      for (const std::string& name : tables_) {
        if (!used.contains(name)) {
          problem("mixer." + name, "[mixer.{}] is never used: pattern in [model] does not name it", name);
        }
      }
    }
    if (model.layers < static_cast<std::int64_t>(model.pattern.size())) {
      problem("model.layers", "layers in [model] is {}, fewer than the {} entries of pattern", model.layers,
              model.pattern.size());
    }
    const bool sound = problems_.empty();
    for (const MixerTable& table : recipe_.mixers) try_mixer(table);
    // A recipe with other defects is no model yet.
    if (sound && problems_.empty() && model.export_profile != "none") check_export_profile();
  }

  // What the target cannot express, each where the recipe says it.
  void check_export_profile() {
    constexpr std::int64_t kAnyVocabulary = 256;
    const std::string& profile = recipe_.model.export_profile;
    for (const std::string& line :
         find_hub_target(profile)->obstacles(language_model_config(recipe_, kAnyVocabulary))) {
      const auto table =
          std::ranges::find_if(recipe_.mixers, [&](const MixerTable& t) { return line.starts_with(t.where); });
      if (table != recipe_.mixers.end()) {
        problems_.add_complete(places_.find("mixer." + table->name),
                               fmt::format("{} (export_profile = \"{}\")", line, profile));
      } else {
        problem("model." + line.substr(0, line.find(' ')), "{} (export_profile = \"{}\")", line, profile);
      }
    }
  }

  // Lets the mixer declare a layer, which allocates nothing, to hear its objections before any data is touched.
  void try_mixer(const MixerTable& table) {
    ParameterStore store;
    const MixerSite site{.width = recipe_.model.width,
                         .layers = recipe_.model.layers,
                         .layer = 0,
                         .max_tokens = recipe_.data.sequence_length,
                         .norm_eps = recipe_.model.norm_eps};
    try {
      table.type->create(ParameterScope(store, "mixer."), site, table.options, table.where);
    } catch (const Error& error) {
      if (error.code() != ExitCode::config) throw;
      problems_.add_complete(places_.find("mixer." + table.name), error.what());
    }
  }

  void check_data() {
    const DataSection& data = recipe_.data;
    const std::int64_t T = data.sequence_length;
    if (!recipe_.task && data.train.empty() && data.mixture.empty()) {
      problem("data", "[data] needs train = \"FOLDER\", or [[data.mixture]] tables");
    } else if (!data.train.empty() && !data.mixture.empty()) {
      problem("data.mixture", "[data] has both train and [[data.mixture]]; keep one");
    }
    if (data.batch_tokens % T != 0) {
      const std::int64_t below = data.batch_tokens / T * T;
      problem("data.batch_tokens", "batch_tokens in [data] is {}, which is no multiple of sequence_length = {}; {}{}",
              data.batch_tokens, T, below > 0 ? fmt::format("try {} or ", below) : "try ", below + T);
    }
    double weight = 0.0;
    for (std::size_t i = 0; i < data.mixture.size(); ++i) {
      const MixtureSource& source = data.mixture[i];
      const std::string key = fmt::format("data.mixture[{}]", i);
      if (source.path.empty()) problem(key + ".path", "path in [[data.mixture]] is empty");
      if (!source.weight_points.empty() && !parse_points(source.weight_points)) {
        problem(key + ".weight_points",
                "weight_points in [[data.mixture]] must be \"TOKENS:WEIGHT\" with increasing tokens, e.g. [\"0:1\", "
                "\"1000000000:0.5\"]");
      }
      weight += source.weight_points.empty() ? source.weight : 1.0;
    }
    if (!data.mixture.empty() && weight == 0.0) problem("data.mixture", "every weight in [[data.mixture]] is 0");
    for (const std::string& range : data.skip_steps) {
      if (parse_step_range(range)) continue;
      problem("data.skip_steps", "skip_steps in [data] has {}; expected \"N\" or \"FIRST-LAST\"", toml_string(range));
    }
    if (data.packing == Packing::bucket) check_buckets();
  }

  void check_buckets() {
    const DataSection& data = recipe_.data;
    if (data.mixture.size() > 1) {
      problem("data.mixture", "packing = \"bucket\" takes one dataset, and [[data.mixture]] has {}",
              data.mixture.size());
    }
    if (!std::has_single_bit(static_cast<std::uint64_t>(data.min_bucket))) {
      problem("data.min_bucket", "min_bucket in [data] is {}, which is no power of two", data.min_bucket);
    } else if (data.min_bucket > data.sequence_length) {
      problem("data.min_bucket", "min_bucket in [data] is {}, more than sequence_length = {}", data.min_bucket,
              data.sequence_length);
    }
  }

  void check_optimizer() {
    const OptimizerSection& optimizer = recipe_.optimizer;
    const LearningRateSchedule schedule = schedule_of(recipe_);
    const std::int64_t steps = recipe_.run.steps;
    if (optimizer.warmup_steps > steps) {
      problem("optimizer.warmup_steps", "warmup_steps in [optimizer] is {}, more than steps = {} in [run]",
              optimizer.warmup_steps, steps);
    } else if (optimizer.schedule == ScheduleLaw::wsd && optimizer.warmup_steps > schedule.decay_start()) {
      problem("optimizer.warmup_steps",
              "warmup_steps in [optimizer] is {}, but the cooldown begins at step {} (decay_fraction = {} of {} steps)",
              optimizer.warmup_steps, schedule.decay_start(), optimizer.decay_fraction, steps);
    }
    const bool piecewise = optimizer.schedule == ScheduleLaw::piecewise;
    if (piecewise && optimizer.schedule_points.empty()) {
      problem("optimizer.schedule",
              "schedule = \"piecewise\" in [optimizer] needs schedule_points = [\"STEP:FACTOR\", ...]");
    } else if (!piecewise && !optimizer.schedule_points.empty()) {
      problem("optimizer.schedule_points", "schedule_points in [optimizer] are for schedule = \"piecewise\" only");
    } else if (piecewise && !parse_points(optimizer.schedule_points)) {
      problem(
          "optimizer.schedule_points",
          "schedule_points in [optimizer] must be \"STEP:FACTOR\" with increasing steps, e.g. [\"0:1\", \"1000:0.1\"]");
    }
    for (std::size_t i = 0; i < optimizer.groups.size(); ++i) {
      if (optimizer.groups[i].match.empty()) {
        problem(fmt::format("optimizer.groups[{}].match", i),
                "match in [[optimizer.groups]] is empty; expected a glob");
      }
    }
  }

  void check_parallel() {
    const ParallelSection& parallel = recipe_.parallel;
    if (parallel.cp > 1) {
      problem("parallel.cp", "cp in [parallel] is {}, but this build does not split rows over ranks; use 1",
              parallel.cp);
    }
    if (parallel.zero > 0) {
      problem("parallel.zero", "zero in [parallel] is {}, but this build does not shard optimizer state; use 0",
              parallel.zero);
    }
    const std::int64_t T = recipe_.data.sequence_length;
    if (parallel.micro_batch_tokens % T != 0) {
      problem("parallel.micro_batch_tokens",
              "micro_batch_tokens in [parallel] is {}, which is no multiple of sequence_length = {}",
              parallel.micro_batch_tokens, T);
    } else if (recipe_.data.rows_per_step() % rows_per_micro_batch(recipe_) != 0) {
      problem("parallel.micro_batch_tokens",
              "micro_batch_tokens in [parallel] is {}, which does not divide batch_tokens = {} in [data]",
              parallel.micro_batch_tokens, recipe_.data.batch_tokens);
    } else if (recipe_.data.anchor && rows_per_micro_batch(recipe_) > 1) {
      problem("parallel.micro_batch_tokens",
              "micro_batch_tokens in [parallel] is {}, but rows with an anchor are taken one at a time: use {}",
              parallel.micro_batch_tokens, T);
    }
  }

  const Recipe& recipe_;
  const std::vector<std::string>& tables_;
  const RecipePlaces& places_;
  RecipeProblems& problems_;
};

// Keys of [data] that a task leaves a meaning.
constexpr std::array<std::string_view, 5> kTaskDataKeys = {"sequence_length", "batch_tokens", "skip_steps", "seed",
                                                           "prefetch_steps"};

void refuse_dataset_keys(const Recipe& recipe, const RecipePlaces& places, RecipeProblems& problems) {
  for (const SectionSpec& section : recipe_sections()) {
    if (section.name != "data") continue;
    const Options values = section.tables(recipe).front();
    for (const KeySpec& spec : section.keys) {
      const std::string& key = spec.option.key;
      if (std::ranges::find(kTaskDataKeys, key) != kTaskDataKeys.end()) continue;
      if (values.values().at(key) == spec.option.default_value) continue;
      problems.add(places.find("data." + key),
                   fmt::format("{} in [data] is for datasets, but rows come from [task]; leave it out", key));
    }
  }
  if (!recipe.data.mixture.empty()) {
    problems.add(places.find("data.mixture"),
                 "[[data.mixture]] is for datasets, but rows come from [task]; leave it out");
  }
  if (recipe.validation.tokens != 0) {
    problems.add(places.find("validation.tokens"),
                 "tokens in [validation] is for datasets; with [task], set validation_examples there");
  }
}

}  // namespace

void settle_rows(Recipe& recipe, const RecipePlaces& places, RecipeProblems& problems) {
  const std::string key = "data.sequence_length";
  if (!recipe.task) {
    if (recipe.data.sequence_length == 0) {
      problems.add(places.find(key),
                   "sequence_length in [data] is \"auto\", but there is no [task] whose rows it "
                   "could follow; give the tokens of a row");
    }
    return;
  }
  refuse_dataset_keys(recipe, places, problems);
  try {
    const std::unique_ptr<Task> task = make_task(*recipe.task, data_seed(recipe));
    const std::int64_t length = task->row_length();
    if (recipe.data.sequence_length == 0) recipe.data.sequence_length = length;
    if (recipe.data.sequence_length != length) {
      problems.add(places.find(key),
                   fmt::format("sequence_length in [data] is {}, but the rows of [task] have {} tokens; leave it out",
                               recipe.data.sequence_length, length));
    }
    if (const std::int64_t own = recipe.model.vocabulary; own != 0 && own < task->vocabulary()) {
      problems.add(places.find("model.vocabulary"),
                   fmt::format("vocabulary in [model] is {}, fewer than the {} token ids of [task]; leave it out", own,
                               task->vocabulary()));
    }
  } catch (const Error& error) {
    if (error.code() != ExitCode::config) throw;
    problems.add_complete(places.find("task"), error.what());
  }
}

void check_recipe(const Recipe& recipe, const std::vector<std::string>& tables, const RecipePlaces& places,
                  RecipeProblems& problems) {
  Checker(recipe, tables, places, problems).check();
}

}  // namespace weft
