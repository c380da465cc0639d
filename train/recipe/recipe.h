// Recipes: the strict TOML description of a run.
//
// The structs below hold values and defaults; train/recipe/schema.cpp says once, for each key, its name, help, range
// and what changing it does to a run. Reading, overrides, the resolved recipe and docs/recipes.md follow from that.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/sampler/sampler.h"
#include "data/synthetic/task.h"
#include "modules/language_model.h"
#include "modules/mixer.h"
#include "train/optimizers/optimizer.h"
#include "train/optimizers/schedule.h"
#include "train/optimizers/step_guard.h"

namespace weft {

enum class DeviceChoice : std::uint8_t { automatic, cpu, cuda };
// Of activations and matrices; masters, statistics and gradients of parameters are fp32 in any case.
enum class Precision : std::uint8_t { automatic, bf16, fp32 };

struct RunSection {
  std::string name;  // empty in the file: the file's name without .toml
  std::int64_t steps = 0;
  std::int64_t seed = 0;
  DeviceChoice device = DeviceChoice::automatic;
  Precision precision = Precision::automatic;  // bf16 on GPUs, fp32 on the CPU
  bool cuda_graphs = true;
  std::string out = "runs";  // the run's folder is out/name
};

struct ModelSection {
  static constexpr std::int64_t kAutomatic = -1;

  std::int64_t width = 0;
  std::int64_t layers = 0;
  std::vector<std::string> pattern;  // names of [mixer.NAME] tables; layer l uses pattern[l mod size]
  std::int64_t ffn = kAutomatic;     // hidden width; 0: no feed-forward branch
  bool ffn_bias = false;
  bool tied = true;
  std::int64_t vocabulary = 0;  // 0: the tokenizer's
  double norm_eps = 1e-6;
  Residual residual = Residual::pre_norm;
  std::string init_from;  // run or checkpoint whose parameters a new run begins with; empty: drawn from the seed
  std::string export_profile = "none";  // a target of `weft export` that must be able to express the model
  double z_loss = 1e-4;
  Recompute recompute = Recompute::none;

  // 8/3 width rounded up to a multiple of 64 when automatic.
  std::int64_t ffn_hidden() const;
};

// A [mixer.NAME] table whose mixer type and options have been checked.
struct MixerTable {
  std::string name;
  const MixerType* type = nullptr;
  Options options;
  std::string where;  // for messages, e.g. "quickstart.toml:12: [mixer.gla]"
};

struct MixtureSource {
  std::string path;
  double weight = 1.0;
  std::vector<std::string> weight_points;  // "TOKENS:WEIGHT", increasing; replaces weight
  std::int64_t max_epochs = -1;            // -1: data.max_epochs
};

enum class OnExhausted : std::uint8_t { stop, error };

struct DataSection {
  std::string train;                   // a dataset; or
  std::vector<MixtureSource> mixture;  // several
  std::string validation;              // empty: none
  std::int64_t sequence_length = 0;    // T; 0 only while a recipe is read: as long as the task's rows
  std::int64_t batch_tokens = 0;       // per optimizer step, over all ranks; a multiple of T
  Packing packing = Packing::concat;
  bool intra_document = true;
  bool anchor = false;
  std::int64_t max_docs = 0;
  Curriculum curriculum = Curriculum::pow2;
  bool reverse_curriculum = false;
  std::int64_t cycles = 8;
  std::int64_t min_bucket = 64;  // tokens, a power of two
  std::int64_t max_epochs = 4;   // 0: without limit
  OnExhausted on_exhausted = OnExhausted::stop;
  std::vector<std::string> skip_steps;  // "N" or "FIRST-LAST"
  std::int64_t seed = -1;               // -1: run.seed
  std::int64_t prefetch_steps = 2;

  std::int64_t rows_per_step() const { return batch_tokens / sequence_length; }
};

// The [task] table: a synthetic task in place of datasets.
struct TaskTable {
  const TaskType* type = nullptr;
  Options options;
  std::int64_t validation_examples = 256;
  std::int64_t test_examples = 1000;
  std::string where;  // for messages, e.g. "mqar.toml:12: [task]"
};

enum class SpikeGuardUse : std::uint8_t { automatic, on, off };

struct GroupTable {
  std::string match;
  std::string optimizer = "default";  // adamw, muon, frozen
  double lr_mult = 1.0;
  double wd_mult = -1.0;  // -1: the built-in 0 or 1
  double beta1 = -1.0;    // -1: optimizer.beta1
  double beta2 = -1.0;
  std::int64_t split = 1;
};

struct MuonTable {
  double momentum = 0.95;
  MuonScale scale = MuonScale::rms;
  double scale_factor = -1.0;   // -1: 0.2 for rms, else 1
  double learning_rate = -1.0;  // -1: optimizer.learning_rate; 0.02 for original
  double weight_decay = -1.0;   // -1: optimizer.weight_decay; 0 for original
};

struct OptimizerSection {
  UpdateRule name = UpdateRule::adamw;
  double learning_rate = 1e-3;
  ScheduleLaw schedule = ScheduleLaw::wsd;
  std::int64_t warmup_steps = 0;
  double decay_fraction = 0.2;
  double final_fraction = -1.0;              // -1: 0.1 for cosine and linear, else 0
  std::vector<std::string> schedule_points;  // piecewise: "STEP:FACTOR", increasing
  double weight_decay = 0.1;
  double beta1 = 0.9;
  double beta2 = 0.95;  // 0: from batch_tokens, automatic_beta2
  double eps = 1e-10;
  double clip = 1.0;  // 0: off
  SpikeGuardUse spike_guard = SpikeGuardUse::automatic;
  OnNonfinite on_nonfinite = OnNonfinite::skip;
  std::int64_t max_consecutive_bad = 3;
  MuonTable muon;
  std::vector<GroupTable> groups;
};

struct ParallelSection {
  std::int64_t cp = 1;
  std::int64_t zero = 0;
  std::int64_t micro_batch_tokens = 0;  // per rank, a multiple of T; 0: one row at a time
};

enum class VerifyOnLoad : std::uint8_t { crc, full, none };

struct CheckpointSection {
  std::int64_t every = 1000;  // steps; 0: only at the end
  std::int64_t keep = 3;
  std::int64_t keep_every = 0;
  bool keep_best = true;
  VerifyOnLoad verify_on_load = VerifyOnLoad::crc;
};

struct ValidationSection {
  std::int64_t every = 500;  // steps; 0: only at the end
  std::int64_t tokens = 0;   // of the validation data; 0: all
};

struct LogSection {
  std::int64_t every = 1;  // steps between rows of metrics.jsonl
};

struct Recipe {
  RunSection run;
  ModelSection model;
  std::vector<MixerTable> mixers;  // those of the pattern, each once, in order of first use
  DataSection data;
  std::optional<TaskTable> task;  // nothing: [data] names datasets
  OptimizerSection optimizer;
  ParallelSection parallel;
  CheckpointSection checkpoint;
  ValidationSection validation;
  LogSection log;

  const MixerTable& mixer(std::string_view name) const;
};

// Reads `text` of the file `source`, then applies `overrides` ("a.b.c=value", TOML values; what is no TOML value is a
// string). Error (config) with one line for each defect, in the order of the file:
//   quickstart.toml:12: unknown key "lerning_rate" in [optimizer]; did you mean "learning_rate"?
Recipe parse_recipe(std::string_view text, const std::string& source, std::span<const std::string> overrides = {},
                    const std::vector<const MixerType*>& mixers = mixer_types());
// Files of at most 1 MiB.
Recipe load_recipe(const std::string& path, std::span<const std::string> overrides = {},
                   const std::vector<const MixerType*>& mixers = mixer_types());

// The [task] table of the task `name` (empty: the recipe's own, which it must have) with `overrides`, "KEY=VALUE" or
// "task.KEY=VALUE": what they leave is as in the recipe if its task is the same, else the default. Error (config) as
// for recipes.
TaskTable task_table(const Recipe& recipe, const std::string& name, std::span<const std::string> overrides);

// Every key with its value, in a fixed order: TOML that parse_recipe reads back to the same recipe. Equal recipes give
// equal text.
std::string resolved_recipe(const Recipe& recipe);

// SHA-256 (64 hexadecimal digits) over the resolved values of the keys that are not free to change.
std::string recipe_digest(const Recipe& recipe);

// What a change between two recipes means for going on with a run.
enum class Effect : std::uint8_t {
  free,         // nothing: logging, intervals, ranks, micro-batches
  run,          // another run from here on: allowed, logged as a branch
  incompatible  // a different architecture: the checkpoint does not fit
};

struct RecipeChange {
  std::string key;  // dotted
  std::string before;
  std::string after;  // TOML values; empty = absent
  Effect effect;
};

// Changes of a run that continues at `step`, in the order of the resolved recipe. More or fewer steps are free while
// the schedule of both recipes is the same up to `step`.
std::vector<RecipeChange> recipe_changes(const Recipe& before, const Recipe& after, std::int64_t step);

// The reference of all keys as Markdown: docs/recipes.md.
std::string recipe_reference();

// What recipes mean to the parts that they configure.
LanguageModelConfig language_model_config(const Recipe& recipe, std::int64_t data_vocabulary);
// Of the order of the data, and of the examples of a task.
std::uint64_t data_seed(const Recipe& recipe);
std::unique_ptr<Task> make_task(const TaskTable& table, std::uint64_t seed);
RowOptions row_options(const Recipe& recipe);
// Without the datasets themselves: `sources` is left empty; weights and epochs of source i come from source_options.
SamplerOptions sampler_options(const Recipe& recipe);
struct SourceOptions {
  std::string path;
  std::vector<WeightPoint> weight;
  std::int64_t max_epochs;
};
std::vector<SourceOptions> source_options(const Recipe& recipe);
LearningRateSchedule schedule_of(const Recipe& recipe);
OptimizerOptions optimizer_options(const Recipe& recipe);
bool spike_guard_on(const Recipe& recipe);  // automatic: runs of more than 10,000 steps
std::int64_t rows_per_micro_batch(const Recipe& recipe);

}  // namespace weft
