#include "train/recipe/schema.h"

#include <algorithm>
#include <type_traits>
#include <utility>

#include "checkpoints/huggingface/target.h"

namespace weft {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kMostSteps = 1e12;
constexpr double kMostTokens = 1e15;

struct Limits {
  double minimum = -kInfinity;
  double maximum = kInfinity;
  std::vector<std::string> choices = {};  // of an enum: in the order of its values
  bool required = false;
  std::optional<double> automatic = {};
};

// A key bound to a member of its section's struct; the default is the member's.
template <class S>
struct Field {
  KeySpec spec;
  std::function<void(S&, const OptionValue&)> assign;
  std::function<OptionValue(const S&)> value;
};

template <class S, class T>
Field<S> field(const char* key, T S::*member, Effect effect, const char* help, Limits limits = {}) {
  Field<S> bound;
  if constexpr (std::is_enum_v<T>) {
    const std::vector<std::string> names = limits.choices;
    bound.value = [member, names](const S& s) -> OptionValue { return names[static_cast<std::size_t>(s.*member)]; };
    bound.assign = [member, names](S& s, const OptionValue& v) {
      const auto place = std::ranges::find(names, std::get<std::string>(v)) - names.begin();
      s.*member = static_cast<T>(place);
    };
  } else {
    bound.value = [member](const S& s) -> OptionValue { return s.*member; };
    bound.assign = [member](S& s, const OptionValue& v) { s.*member = std::get<T>(v); };
  }
  bound.spec = {.option = {.key = key,
                           .default_value = bound.value(S{}),
                           .help = help,
                           .minimum = limits.minimum,
                           .maximum = limits.maximum,
                           .choices = std::move(limits.choices),
                           .required = limits.required},
                .effect = effect,
                .automatic = limits.automatic};
  return bound;
}

// A key that came after recipes had digests.
template <class S>
Field<S> added_later(Field<S> bound) {
  bound.spec.option.later = true;
  return bound;
}

template <class S>
Options read_fields(const std::vector<Field<S>>& fields, const S& s) {
  Options options;
  for (const Field<S>& f : fields) options.set(f.spec.option.key, f.value(s));
  return options;
}

template <class S>
S write_fields(const std::vector<Field<S>>& fields, const Options& options) {
  S s;
  for (const Field<S>& f : fields) f.assign(s, options.values().at(f.spec.option.key));
  return s;
}

template <class S>
std::vector<KeySpec> specs_of(const std::vector<Field<S>>& fields) {
  std::vector<KeySpec> specs;
  for (const Field<S>& f : fields) specs.push_back(f.spec);
  return specs;
}

// `get` takes a recipe to the section's struct. Members that are sections of their own are kept.
template <class S, class Get>
SectionSpec table(const char* name, const char* help, Get get, std::vector<Field<S>> fields) {
  SectionSpec section{.name = name, .help = help, .keys = specs_of(fields), .tables = {}, .assign = {}};
  section.tables = [get, fields](const Recipe& r) { return std::vector{read_fields<S>(fields, get(r))}; };
  section.assign = [get, fields](Recipe& r, const std::vector<Options>& tables) {
    for (const Field<S>& f : fields) f.assign(get(r), tables.at(0).values().at(f.spec.option.key));
  };
  return section;
}

template <class S, class Get>
SectionSpec table_array(const char* name, const char* help, Get get, std::vector<Field<S>> fields) {
  SectionSpec section{.name = name, .help = help, .array = true, .keys = specs_of(fields), .tables = {}, .assign = {}};
  section.tables = [get, fields](const Recipe& r) {
    std::vector<Options> tables;
    for (const S& s : get(r)) tables.push_back(read_fields<S>(fields, s));
    return tables;
  };
  section.assign = [get, fields](Recipe& r, const std::vector<Options>& tables) {
    get(r).clear();
    for (const Options& options : tables) get(r).push_back(write_fields<S>(fields, options));
  };
  return section;
}

std::vector<std::string> export_profiles() {
  std::vector<std::string> names{"none"};
  for (const HubTarget& target : hub_targets()) names.push_back(target.name);
  return names;
}

SectionSpec run_section() {
  using S = RunSection;
  return table<S>("run", "What is run, and where it is kept.", [](auto& r) -> auto& { return r.run; },
                  {field("name", &S::name, Effect::free, "name of the run; empty: the recipe's file name"),
                   field("steps", &S::steps, Effect::run, "optimizer steps",
                         {.minimum = 1, .maximum = kMostSteps, .required = true}),
                   field("seed", &S::seed, Effect::incompatible,
                         "seed of initial weights and, unless data.seed is set, of the data order", {.minimum = 0}),
                   field("device", &S::device, Effect::free, "where to compute; auto: on a GPU if there is one",
                         {.choices = {"auto", "cpu", "cuda"}}),
                   field("precision", &S::precision, Effect::run,
                         "type of activations and matrices; auto: bf16 on GPUs, fp32 on the CPU. Master weights, "
                         "statistics and gradients of parameters are fp32",
                         {.choices = {"auto", "bf16", "fp32"}}),
                   field("cuda_graphs", &S::cuda_graphs, Effect::free,
                         "on GPUs: record the kernels of a step once and replay them"),
                   field("out", &S::out, Effect::free, "folder that holds the run's folder")});
}

SectionSpec model_section() {
  using S = ModelSection;
  return table<S>(
      "model", "The network. Its layers cycle through `pattern`.", [](auto& r) -> auto& { return r.model; },
      {field("width", &S::width, Effect::incompatible, "model width",
             {.minimum = 1, .maximum = 1 << 20, .required = true}),
       field("layers", &S::layers, Effect::incompatible, "number of blocks",
             {.minimum = 1, .maximum = 1 << 14, .required = true}),
       field("pattern", &S::pattern, Effect::incompatible,
             "mixer of each layer, repeated to fill the layers; names of [mixer.NAME] tables", {.required = true}),
       field(
           "ffn", &S::ffn, Effect::incompatible,
           "hidden width of the feed-forward branch; auto: 8/3 width rounded up to a multiple of 64; 0: no such branch",
           {.minimum = 0, .maximum = 1 << 22, .automatic = S::kAutomatic}),
       added_later(field("ffn_bias", &S::ffn_bias, Effect::incompatible, "biases of the feed-forward branch")),
       field("tied", &S::tied, Effect::incompatible, "the output projection is the embedding table"),
       field("vocabulary", &S::vocabulary, Effect::incompatible,
             "rows of the embedding, at least the tokenizer's ids; auto: as many as the data's tokenizer has, or the "
             "task",
             {.minimum = 0, .maximum = 1 << 24, .automatic = 0}),
       field("norm_eps", &S::norm_eps, Effect::run, "epsilon of the RMS norms", {.minimum = 1e-12, .maximum = 1}),
       added_later(field("residual", &S::residual, Effect::incompatible,
                         "what branches f are added to: x + f(norm(x)), or norm(x) + f(norm(x))",
                         {.choices = {"pre_norm", "post_norm_input"}})),
       added_later(
           field("init_from", &S::init_from, Effect::run,
                 "run or checkpoint whose parameters a new run begins with, e.g. an imported model; empty: drawn "
                 "from run.seed. Without effect on a run that goes on")),
       added_later(field("export_profile", &S::export_profile, Effect::free,
                         "a target of weft export: options that it cannot express are refused before training",
                         {.choices = export_profiles()})),
       field("z_loss", &S::z_loss, Effect::run, "weight of the squared log-normaliser in the loss; 0: off",
             {.minimum = 0, .maximum = 1}),
       field("recompute", &S::recompute, Effect::free,
             "what backward recomputes instead of keeping it. selective: what is cheap (norms, gates, activations, "
             "rotations), which leaves 52 to 73 % of the activations of recipes/models and takes no matrix product; "
             "block: every layer, which leaves 7 to 13 % and takes a forward pass more, a third of the FLOPs. The bits "
             "are the same; `weft plan` says what a step takes",
             {.choices = {"none", "selective", "block"}})});
}

SectionSpec data_section() {
  using S = DataSection;
  return table<S>(
      "data",
      "Datasets made by `weft prepare`, and how rows are drawn from them. With `[task]` there are no datasets, and "
      "only "
      "`sequence_length`, `batch_tokens`, `skip_steps`, `seed` and `prefetch_steps` have a meaning.",
      [](auto& r) -> auto& { return r.data; },
      {field("train", &S::train, Effect::run, "folder of the training dataset; or [[data.mixture]]"),
       field("validation", &S::validation, Effect::free, "folder of the validation dataset; empty: no validation"),
       field("sequence_length", &S::sequence_length, Effect::incompatible,
             "tokens of a row; with [task] it may be left out (auto): as the task's rows",
             {.minimum = 2, .maximum = 1 << 28, .required = true, .automatic = 0}),
       field("batch_tokens", &S::batch_tokens, Effect::incompatible,
             "tokens of an optimizer step over all ranks; a multiple of sequence_length",
             {.minimum = 2, .maximum = kMostTokens, .required = true}),
       field("packing", &S::packing, Effect::incompatible,
             "rows are windows of the stream, packed whole documents, or pieces of equal length",
             {.choices = {"concat", "pack", "bucket"}}),
       field("intra_document", &S::intra_document, Effect::run, "nothing crosses the boundary between documents"),
       field("anchor", &S::anchor, Effect::run, "rows begin with one token that every document may attend to"),
       field("max_docs", &S::max_docs, Effect::run, "most pieces in a row; auto: sequence_length / 16 + 2",
             {.minimum = 0, .maximum = 1 << 28, .automatic = 0}),
       field("curriculum", &S::curriculum, Effect::run,
             "bucket packing: odds of lengths over a cycle, short ones first unless reversed",
             {.choices = {"none", "pow2", "linear"}}),
       field("reverse_curriculum", &S::reverse_curriculum, Effect::run, "bucket packing: long pieces first"),
       field("cycles", &S::cycles, Effect::run, "bucket packing: passes of the curriculum in an epoch",
             {.minimum = 1, .maximum = 1 << 20}),
       field("min_bucket", &S::min_bucket, Effect::run, "bucket packing: shortest pieces; a power of two",
             {.minimum = 2, .maximum = 1 << 28}),
       field("max_epochs", &S::max_epochs, Effect::run, "passes through a source at most; 0: without limit",
             {.minimum = 0, .maximum = 1 << 30}),
       field("on_exhausted", &S::on_exhausted, Effect::run,
             "when every source has reached max_epochs: end the run, or fail", {.choices = {"stop", "error"}}),
       field("skip_steps", &S::skip_steps, Effect::run,
             "data steps to leave out, \"N\" or \"FIRST-LAST\", to get round bad data"),
       field("seed", &S::seed, Effect::incompatible, "seed of the data order; auto: run.seed",
             {.minimum = 0, .automatic = -1}),
       field("prefetch_steps", &S::prefetch_steps, Effect::free, "steps that the loader holds ready",
             {.minimum = 1, .maximum = 64})});
}

SectionSpec mixture_section() {
  using S = MixtureSource;
  return table_array<S>(
      "data.mixture", "Several training datasets, each with its share of the rows, in place of data.train.",
      [](auto& r) -> auto& { return r.data.mixture; },
      {field("path", &S::path, Effect::run, "folder of the dataset", {.required = true}),
       field("weight", &S::weight, Effect::run, "share of rows, relative to the other sources",
             {.minimum = 0, .maximum = 1e9}),
       field("weight_points", &S::weight_points, Effect::run,
             "weight over tokens drawn, \"TOKENS:WEIGHT\" with straight lines between; replaces weight"),
       field("max_epochs", &S::max_epochs, Effect::run, "passes through this source; auto: data.max_epochs",
             {.minimum = 0, .maximum = 1 << 30, .automatic = -1})});
}

SectionSpec optimizer_section() {
  using S = OptimizerSection;
  return table<S>(
      "optimizer", "The update rule, its schedule and its guards.", [](auto& r) -> auto& { return r.optimizer; },
      {field("name", &S::name, Effect::run, "rule for hidden matrices; everything else takes adamw",
             {.choices = {"adamw", "muon"}}),
       field("learning_rate", &S::learning_rate, Effect::run, "peak rate", {.minimum = 0, .maximum = 1e3}),
       field("schedule", &S::schedule, Effect::run,
             "rate after warm-up: constant then a cooldown (wsd), cosine, linear, constant, inverse square root, or "
             "piecewise linear",
             {.choices = {"wsd", "cosine", "linear", "constant", "inv_sqrt", "piecewise"}}),
       field("warmup_steps", &S::warmup_steps, Effect::run, "steps of linear warm-up",
             {.minimum = 0, .maximum = kMostSteps}),
       field("decay_fraction", &S::decay_fraction, Effect::run, "wsd: part of the steps that cool down",
             {.minimum = 0, .maximum = 1}),
       field("final_fraction", &S::final_fraction, Effect::run,
             "last rate over peak rate; auto: 0.1 for cosine and linear, else 0",
             {.minimum = 0, .maximum = 1, .automatic = -1}),
       field("schedule_points", &S::schedule_points, Effect::run, "piecewise: \"STEP:FACTOR\" of the peak rate"),
       field("weight_decay", &S::weight_decay, Effect::run,
             "decoupled decay, times the rate, of matrices other than embeddings", {.minimum = 0, .maximum = 10}),
       field("beta1", &S::beta1, Effect::run, "adamw: decay of the first moment", {.minimum = 0, .maximum = 0.99999}),
       field("beta2", &S::beta2, Effect::run, "adamw: decay of the second moment; auto: half-life of 7 million tokens",
             {.minimum = 1e-3, .maximum = 0.999999, .automatic = 0}),
       field("eps", &S::eps, Effect::run, "adamw: added to the root of the second moment",
             {.minimum = 1e-30, .maximum = 1}),
       field("clip", &S::clip, Effect::run, "largest global gradient norm; 0: no clipping",
             {.minimum = 0, .maximum = 1e9}),
       field("spike_guard", &S::spike_guard, Effect::run,
             "skip steps whose loss or gradient norm stands out; auto: on for more than 10,000 steps",
             {.choices = {"auto", "on", "off"}}),
       field("on_nonfinite", &S::on_nonfinite, Effect::run,
             "at NaN or infinity: skip the step, stop, or after max_consecutive_bad go back to the last checkpoint",
             {.choices = {"skip", "stop", "rollback"}}),
       field("max_consecutive_bad", &S::max_consecutive_bad, Effect::run,
             "non-finite steps in a row that end the run or roll it back", {.minimum = 1, .maximum = 1 << 20})});
}

SectionSpec muon_section() {
  using S = MuonTable;
  return table<S>(
      "optimizer.muon", "Muon's own numbers.", [](auto& r) -> auto& { return r.optimizer.muon; },
      {field("momentum", &S::momentum, Effect::run, "Nesterov momentum of averaged gradients",
             {.minimum = 0, .maximum = 0.99999}),
       field("scale", &S::scale, Effect::run,
             "factor on the orthogonal update of an A x B matrix: sqrt(max(A, B)), sqrt(max(1, A / B)) or sqrt(A / B)",
             {.choices = {"rms", "original", "spectral"}}),
       field("scale_factor", &S::scale_factor, Effect::run, "times this; auto: 0.2 for rms, else 1",
             {.minimum = 0, .maximum = 1e3, .automatic = -1}),
       field("learning_rate", &S::learning_rate, Effect::run,
             "peak rate; auto: optimizer.learning_rate, but 0.02 for original",
             {.minimum = 0, .maximum = 1e3, .automatic = -1}),
       field("weight_decay", &S::weight_decay, Effect::run, "decay; auto: optimizer.weight_decay, but 0 for original",
             {.minimum = 0, .maximum = 10, .automatic = -1})});
}

SectionSpec groups_section() {
  using S = GroupTable;
  return table_array<S>(
      "optimizer.groups",
      "Exceptions for parameters by name, in order: the first table whose glob matches a parameter applies.",
      [](auto& r) -> auto& { return r.optimizer.groups; },
      {field("match", &S::match, Effect::run, "glob over the whole name, e.g. \"layers.*.mixer.a_log\"",
             {.required = true}),
       field("optimizer", &S::optimizer, Effect::run, "rule of these parameters",
             {.choices = {"default", "adamw", "muon", "frozen"}}),
       field("lr_mult", &S::lr_mult, Effect::run, "times the rate", {.minimum = 0, .maximum = 1e6}),
       field("wd_mult", &S::wd_mult, Effect::run, "times the decay; auto: 1 for matrices and the head, else 0",
             {.minimum = 0, .maximum = 1e6, .automatic = -1}),
       field("beta1", &S::beta1, Effect::run, "auto: optimizer.beta1",
             {.minimum = 0, .maximum = 0.99999, .automatic = -1}),
       field("beta2", &S::beta2, Effect::run, "auto: optimizer.beta2",
             {.minimum = 1e-3, .maximum = 0.999999, .automatic = -1}),
       field("split", &S::split, Effect::run, "muon: the rows are this many matrices stacked, e.g. heads",
             {.minimum = 1, .maximum = 1 << 20})});
}

SectionSpec parallel_section() {
  using S = ParallelSection;
  return table<S>(
      "parallel", "How a step is spread over ranks; data parallelism takes what remains.",
      [](auto& r) -> auto& { return r.parallel; },
      {field("cp", &S::cp, Effect::free, "ranks that share a row", {.minimum = 1, .maximum = 1 << 16}),
       field("zero", &S::zero, Effect::free, "stage of sharded optimizer state", {.minimum = 0, .maximum = 3}),
       field("micro_batch_tokens", &S::micro_batch_tokens, Effect::free,
             "tokens that a rank takes at a time, a multiple of sequence_length; auto: one row",
             {.minimum = 0, .maximum = kMostTokens, .automatic = 0})});
}

SectionSpec checkpoint_section() {
  using S = CheckpointSection;
  return table<S>(
      "checkpoint", "When checkpoints are written and which stay.", [](auto& r) -> auto& { return r.checkpoint; },
      {field("every", &S::every, Effect::free, "steps between checkpoints; 0: only at the end",
             {.minimum = 0, .maximum = kMostSteps}),
       field("keep", &S::keep, Effect::free, "newest checkpoints that stay", {.minimum = 1, .maximum = 1 << 20}),
       field("keep_every", &S::keep_every, Effect::free, "checkpoints of multiples of this step stay too; 0: none",
             {.minimum = 0, .maximum = kMostSteps}),
       field("keep_best", &S::keep_best, Effect::free, "the one with the best validation loss stays too"),
       field("verify_on_load", &S::verify_on_load, Effect::free,
             "what is checked: blocks that are read, whole files, nothing", {.choices = {"crc", "full", "none"}})});
}

SectionSpec validation_section() {
  using S = ValidationSection;
  return table<S>("validation", "Loss on data.validation, or loss and accuracy on task.validation_examples.",
                  [](auto& r) -> auto& { return r.validation; },
                  {field("every", &S::every, Effect::free, "steps between validations; 0: only at the end",
                         {.minimum = 0, .maximum = kMostSteps}),
                   field("tokens", &S::tokens, Effect::free, "tokens of data.validation that are evaluated; auto: all",
                         {.minimum = 0, .maximum = kMostTokens, .automatic = 0})});
}

SectionSpec log_section() {
  using S = LogSection;
  return table<S>("log", "What is written while training.", [](auto& r) -> auto& { return r.log; },
                  {field("every", &S::every, Effect::free, "steps between rows of metrics.jsonl",
                         {.minimum = 1, .maximum = kMostSteps})});
}

const std::vector<Field<TaskTable>>& task_fields() {
  using S = TaskTable;
  static const std::vector<Field<S>> fields = {
      field("validation_examples", &S::validation_examples, Effect::free,
            "examples that validations score: the first ones of the validation split",
            {.minimum = 1, .maximum = 1 << 24}),
      field("test_examples", &S::test_examples, Effect::free,
            "examples that `weft eval --task` scores: the first ones of the test split",
            {.minimum = 1, .maximum = 1 << 24})};
  return fields;
}

}  // namespace

const std::vector<KeySpec>& task_keys() {
  static const std::vector<KeySpec> keys = [] {
    std::vector<std::string> names;
    for (const TaskType* type : task_types()) names.push_back(type->name);
    std::vector<KeySpec> all = {{.option = {.key = "name",
                                            .default_value = std::string(),
                                            .help = "the task; its own keys are listed below",
                                            .choices = names,
                                            .required = true},
                                 .effect = Effect::incompatible}};
    for (const KeySpec& spec : specs_of(task_fields())) all.push_back(spec);
    return all;
  }();
  return keys;
}

std::vector<KeySpec> task_option_keys(const TaskType& type) {
  std::vector<KeySpec> keys;
  for (const OptionSpec& option : type.options) keys.push_back({.option = option, .effect = Effect::incompatible});
  return keys;
}

Options task_values(const TaskTable& table) {
  Options values = table.options;
  values.set("name", table.type->name);
  for (const Field<TaskTable>& f : task_fields()) values.set(f.spec.option.key, f.value(table));
  return values;
}

void set_task_values(TaskTable& table, const Options& values) {
  table.type = find_task(values.text("name"));
  WEFT_CHECK(table.type != nullptr, "no task {}", values.text("name"));
  for (const Field<TaskTable>& f : task_fields()) f.assign(table, values.values().at(f.spec.option.key));
  for (const OptionSpec& option : table.type->options) {
    table.options.set(option.key, values.values().at(option.key));
  }
}

const std::vector<SectionSpec>& recipe_sections() {
  static const std::vector<SectionSpec> sections = {run_section(),        model_section(),     data_section(),
                                                    mixture_section(),    optimizer_section(), muon_section(),
                                                    groups_section(),     parallel_section(),  checkpoint_section(),
                                                    validation_section(), log_section()};
  return sections;
}

}  // namespace weft
