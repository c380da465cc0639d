#include "train/command_line.h"

#include <charconv>
#include <map>
#include <memory>

#include "train/verbs/verbs.h"

namespace weft {

// Adds verbs: each is one function below, which binds its options to an Arguments and says what runs on it.
class VerbList {
 public:
  explicit VerbList(CommandLine& line) : line_(line) {}

  template <class Arguments>
  struct Added {
    CLI::App& verb;
    Arguments& arguments;
  };

  template <class Arguments>
  Added<Arguments> add(const char* name, const char* help, ExitCode (*run)(const Arguments&)) {
    const auto arguments = std::make_shared<Arguments>();
    return put(name, help, false, arguments, [arguments, run](World*) { return run(*arguments); });
  }

  // The same where only an Error can go wrong.
  template <class Arguments>
  Added<Arguments> add(const char* name, const char* help, void (*run)(const Arguments&)) {
    const auto arguments = std::make_shared<Arguments>();
    return put(name, help, false, arguments, [arguments, run](World*) {
      run(*arguments);
      return ExitCode::ok;
    });
  }

  // Of verbs that run on any number of ranks.
  template <class Arguments>
  Added<Arguments> add_collective(const char* name, const char* help, void (*run)(World&, const Arguments&)) {
    const auto arguments = std::make_shared<Arguments>();
    return put(name, help, true, arguments, [arguments, run](World* world) {
      run(*world, *arguments);
      return ExitCode::ok;
    });
  }

 private:
  template <class Arguments>
  Added<Arguments> put(const char* name, const char* help, bool collective, const std::shared_ptr<Arguments>& arguments,
                       std::function<ExitCode(World*)> run) {
    CLI::App* verb = line_.app_.add_subcommand(name, help);
    line_.verbs_.push_back({.options = verb, .collective = collective, .run = std::move(run)});
    return {*verb, *arguments};
  }

  CommandLine& line_;
};

namespace {

void add_json_option(CLI::App& verb, OutputForm& form, const char* help = "Print as JSON") {
  verb.add_flag_callback(
      "--json", [&form] { form = OutputForm::json; }, help);
}

void add_set_option(CLI::App& verb, std::vector<std::string>& overrides, const char* help) {
  verb.add_option("--set", overrides, help)
      ->expected(1)
      ->allow_extra_args(false)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
}

const std::map<std::string, InputFormat> kInputFormats = {
    {"auto", InputFormat::automatic}, {"text", InputFormat::text}, {"jsonl", InputFormat::jsonl}};

std::optional<std::uint64_t> shuffle_seed(const std::string& value) {
  if (value == "none") return std::nullopt;
  std::uint64_t seed = 0;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), seed);
  if (error != std::errc() || end != value.data() + value.size()) {
    throw CLI::ValidationError("--shuffle", "\"" + value + "\" is neither a seed nor none");
  }
  return seed;
}

struct PrepareArguments {
  PrepareOptions options;
  OutputForm form = OutputForm::text;
};

void add_prepare(VerbList& verbs) {
  auto [verb, a] = verbs.add<PrepareArguments>(
      "prepare", "Text or jsonl to a tokenised dataset",
      [](const PrepareArguments& arguments) { run_prepare(arguments.options, arguments.form); });
  PrepareOptions& o = a.options;
  verb.add_option("inputs", o.inputs, "Files, folders, patterns, or - for standard input")->required();
  verb.add_option("--out", o.out, "Folder of the dataset; must not exist")->required();
  verb.add_option("--tokenizer", o.tokenizer, "byte, a tokenizer.json or tokenizer.model, or a folder that holds one");
  verb.add_option("--format", o.format, "auto (by name), text or jsonl")
      ->transform(CLI::CheckedTransformer(kInputFormats));
  const std::map<std::string, TextSplit> splits = {
      {"file", TextSplit::file}, {"blank", TextSplit::blank}, {"delimiter", TextSplit::delimiter}};
  verb.add_option("--split", o.split, "What ends a document of text: file, blank (lines) or delimiter")
      ->transform(CLI::CheckedTransformer(splits));
  verb.add_option("--delimiter", o.delimiter, "The line between documents, for --split delimiter");
  verb.add_option("--text-field", o.text_field, "Member of a jsonl object that holds the text");
  verb.add_option_function<std::string>(
          "--invalid", [&o](const std::string& value) { o.replace_invalid = value == "replace"; },
          "Documents of invalid UTF-8: skip, or replace the bytes by U+FFFD")
      ->check(CLI::IsMember({"skip", "replace"}));
  verb.add_option_function<std::string>(
          "--dedup", [&o](const std::string& value) { o.dedup_exact = value == "exact"; },
          "exact: drop documents whose text came before")
      ->check(CLI::IsMember({"none", "exact"}));
  verb.add_option_function<std::string>(
          "--bos", [&o](const std::string& value) { o.bos = value == "doc"; }, "doc: begin each document with BOS")
      ->check(CLI::IsMember({"none", "doc"}));
  verb.add_option_function<std::string>(
      "--shuffle", [&o](const std::string& value) { o.shuffle_seed = shuffle_seed(value); },
      "Seed of the order of documents, or none for input order");
  verb.add_option("--hold-out", o.validation_every, "Every N-th document goes to OUT-validation");
  verb.add_option("--threads", o.threads, "Encoders; 0: one a core");
  verb.add_option("--memory", o.memory, "Bytes to use, e.g. 4GiB")->transform(CLI::AsSizeValue(false));
  verb.add_option("--max-doc-bytes", o.max_doc_bytes, "Larger documents are skipped")
      ->transform(CLI::AsSizeValue(false));
  add_json_option(verb, a.form);
}

struct TrainTokenizerArguments {
  TrainTokenizerOptions options;
  OutputForm form = OutputForm::text;
};

void add_train_tokenizer(VerbList& verbs) {
  auto [verb, a] = verbs.add<TrainTokenizerArguments>(
      "train-tokenizer", "A byte-level BPE tokenizer.json of text or jsonl",
      [](const TrainTokenizerArguments& arguments) { run_train_tokenizer(arguments.options, arguments.form); });
  TrainTokenizerOptions& o = a.options;
  verb.add_option("inputs", o.corpus.inputs, "Files, folders, patterns, or - for standard input")->required();
  verb.add_option("--out", o.out, "The file, named *.json; must not exist")->required();
  verb.add_option("--vocab", o.vocabulary, "Tokens: special ones, the 256 bytes, and merges")->required();
  const std::map<std::string, WordStyle> styles = {
      {"gpt2", WordStyle::gpt2}, {"llama3", WordStyle::llama3}, {"qwen2", WordStyle::qwen2}};
  verb.add_option("--style", o.style, "The pattern that cuts text into words: gpt2, llama3 or qwen2")
      ->transform(CLI::CheckedTransformer(styles));
  verb.add_option("--special", o.special, "A special token, e.g. <|endoftext|> (the default); again for more")
      ->expected(1)
      ->allow_extra_args(false)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  verb.add_option("--min-count", o.min_count, "How often a pair has to occur to become a token")->capture_default_str();
  verb.add_option("--limit", o.limit_bytes, "Bytes of text to read, e.g. 1GiB; 0: all")
      ->transform(CLI::AsSizeValue(false));
  verb.add_option("--max-words", o.max_words, "Distinct words to keep in memory, about 100 bytes each")
      ->capture_default_str()
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 31));
  verb.add_option("--format", o.corpus.format, "auto (by name), text or jsonl")
      ->transform(CLI::CheckedTransformer(kInputFormats));
  verb.add_option("--text-field", o.corpus.text_field, "Member of a jsonl object that holds the text");
  verb.add_option("--threads", o.corpus.threads, "Readers; 0: one a core")->check(CLI::NonNegativeNumber);
  add_json_option(verb, a.form);
}

void add_train(VerbList& verbs) {
  auto [verb, a] = verbs.add_collective<TrainArguments>(
      "train", "Train the model of a recipe; goes on from the newest checkpoint", run_train);
  verb.add_option("recipe", a.recipe, "TOML recipe")->required();
  add_set_option(verb, a.overrides, "Change a value: --set optimizer.learning_rate=1e-3");
  verb.add_option("--resume", a.resume, "auto, never, or a checkpoint");
}

void add_plan(VerbList& verbs) {
  auto [verb, a] =
      verbs.add<PlanArguments>("plan", "What a step of a recipe will take: memory by kind, work, time", run_plan);
  verb.add_option("recipe", a.recipe, "TOML recipe")->required();
  add_set_option(verb, a.overrides, "Change a value: --set parallel.micro_batch_tokens=8192");
  add_json_option(verb, a.form);
}

void add_verify(VerbList& verbs) {
  auto [verb, a] = verbs.add<VerifyArguments>(
      "verify", "Each layer type of a recipe against fp64, on its device at its shapes",
      [](const VerifyArguments& arguments) { return run_verify(arguments) ? ExitCode::ok : ExitCode::internal; });
  verb.add_option("recipe", a.recipe, "TOML recipe")->required();
  add_set_option(verb, a.overrides, "Change a value: --set run.precision=fp32");
  verb.add_option("--tokens", a.tokens, "Tokens of each row to compare; 0: as many as fp64 computes in seconds")
      ->check(CLI::NonNegativeNumber);
  add_json_option(verb, a.form);
}

void add_bench(VerbList& verbs) {
  auto [verb, a] = verbs.add<BenchArguments>(
      "bench", "Times of operations and mixers, or of a training step, beside their floors", run_bench);
  CLI::Option* filter = verb.add_option("filter", a.filter, "Those whose names contain it; otherwise all");
  CLI::Option* recipe = verb.add_option("--recipe", a.recipe, "A training step of this TOML recipe instead");
  recipe->excludes(filter);
  add_set_option(verb, a.overrides, "Change a value of the recipe");
  verb.get_option("--set")->needs(recipe);
  CLI::Option* decode =
      verb.add_flag("--decode", a.decode, "Its model reading a prompt and going on token by token instead")
          ->needs(recipe);
  verb.add_option("--prompt-tokens", a.prompt, "Of the prompt")->check(CLI::PositiveNumber)->needs(decode);
  verb.add_option("--device", a.device, "auto, cpu or cuda; with a recipe, its run.device counts")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->excludes(recipe);
  add_json_option(verb, a.form, "Print as JSON, a line for each row");
}

void add_device_option(CLI::App& verb, std::string& device) {
  verb.add_option("--device", device,
                  "auto, cpu or cuda; otherwise the first GPU if there is one, unless the recipe says cpu")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
}

void add_eval(VerbList& verbs) {
  auto [verb, a] = verbs.add_collective<EvalArguments>(
      "eval", "Loss, perplexity and bits per byte of a run or checkpoint, or how well it solves a task", run_eval);
  verb.add_option("model", a.path, "Run or checkpoint")->required();
  verb.add_option("--data", a.data, "Dataset; the recipe's validation data otherwise");
  verb.add_option("--tokens", a.tokens, "Tokens of it to score; 0: all")->check(CLI::NonNegativeNumber);
  verb.add_option("--sequence-length", a.sequence_length, "Row length; the recipe's otherwise")
      ->check(CLI::Range(std::int64_t{2}, std::int64_t{1} << 28));
  verb.add_option("--requests", a.requests,
                  "JSON lines {\"context\", \"continuation\"} to score instead: log-likelihoods, as JSON lines")
      ->excludes("--data", "--tokens", "--sequence-length");
  verb.add_flag("--bigram", a.bigram, "Score a bigram model of the training data beside it");
  verb.add_option("--task", a.task, "Score a synthetic task: NAME, or without it the recipe's own")
      ->expected(0, 1)
      ->default_str("")
      ->excludes("--data", "--tokens", "--sequence-length", "--bigram");
  add_set_option(verb, a.overrides, "Change an option of the task: --set length=128");
  verb.get_option("--set")->needs("--task");
  add_device_option(verb, a.device);
  add_json_option(verb, a.form);
}

void add_generate(VerbList& verbs) {
  auto [verb, a] = verbs.add<GenerateArguments>("generate", "Text from a run or checkpoint", run_generate);
  verb.add_option("model", a.path, "Run or checkpoint")->required();
  verb.add_option("--prompt", a.prompt, "Text to go on from");
  const std::map<std::string, EncodeMode> modes = {
      {"prompt", EncodeMode::prompt}, {"markup", EncodeMode::markup}, {"text", EncodeMode::text}};
  verb.add_option("--prompt-as", a.mode,
                  "prompt (special tokens count, BOS as the tokenizer's template says), markup (without template) or "
                  "text (special tokens are text)")
      ->transform(CLI::CheckedTransformer(modes));
  verb.add_option("--tokens", a.tokens, "At most this many")->check(CLI::PositiveNumber);
  verb.add_option("--temperature", a.sampling.temperature, "0: always the most likely token")
      ->check(CLI::NonNegativeNumber);
  verb.add_option("--top-k", a.sampling.top_k, "Of the K most likely tokens only; 0: all")
      ->check(CLI::NonNegativeNumber);
  verb.add_option("--top-p", a.sampling.top_p, "Of the most likely tokens with this much probability")
      ->check(CLI::Range(0.0, 1.0));
  verb.add_option("--seed", a.sampling.seed, "Of the random choices");
  add_device_option(verb, a.device);
  add_json_option(verb, a.form);
}

void add_import(VerbList& verbs) {
  auto [verb, a] = verbs.add<ImportArguments>(
      "import", "A model of Hugging Face's form to a run that eval, generate and train take", run_import);
  verb.add_option("model", a.path, "Folder with config.json and safetensors, or a .gguf file")->required();
  verb.add_option("--out", a.out, "Folder of the run; must not exist")->required();
  add_json_option(verb, a.form);
}

void add_export(VerbList& verbs) {
  auto [verb, a] =
      verbs.add<ExportArguments>("export", "A run or checkpoint as a directory that transformers loads", run_export);
  verb.add_option("model", a.path, "Run or checkpoint")->required();
  verb.add_option("--out", a.out, "Folder to make; must not exist")->required();
  verb.add_option("--to", a.target,
                  "Class of models: auto (the recipe's export_profile, or what expresses it exactly), or a name")
      ->capture_default_str();
  verb.add_option("--dtype", a.dtype, "Of the weights: bf16, f16 or fp32")
      ->capture_default_str()
      ->check(CLI::IsMember({"bf16", "f16", "fp32"}));
  verb.add_option("--shard-size", a.shard_bytes, "Largest file of weights, e.g. 2GB; 5 GB otherwise")
      ->transform(CLI::AsSizeValue(true));
  verb.add_option("--verify", a.verify, "weft: reread and compare; python: load it in transformers, too")
      ->capture_default_str()
      ->check(CLI::IsMember({"weft", "python"}));
  verb.add_option("--python", a.python, "Interpreter for --verify python")->capture_default_str();
  verb.add_option("--verify-seconds", a.verify_seconds,
                  "About how long weft and Python each take for --verify python; large models compare less in it")
      ->check(CLI::Range(1.0, 1e6))
      ->capture_default_str();
  add_json_option(verb, a.form);
}

struct PathArguments {
  std::string path;
  OutputForm form = OutputForm::text;
};

void add_inspect(VerbList& verbs) {
  auto [verb, a] =
      verbs.add<PathArguments>("inspect", "Describe a dataset, run, checkpoint or shard",
                               [](const PathArguments& arguments) { run_inspect(arguments.path, arguments.form); });
  verb.add_option("path", a.path)->required();
  add_json_option(verb, a.form);
}

void add_fsck(VerbList& verbs) {
  auto [verb, a] = verbs.add<PathArguments>(
      "fsck", "Verify every byte of a run, checkpoint or dataset",
      [](const PathArguments& arguments) { return run_fsck(arguments.path) ? ExitCode::ok : ExitCode::storage; });
  verb.add_option("path", a.path)->required();
}

struct ReportArguments {
  std::vector<std::string> runs;
  std::string out;
};

void add_report(VerbList& verbs) {
  auto [verb, a] =
      verbs.add<ReportArguments>("report", "One HTML page with the curves of runs",
                                 [](const ReportArguments& arguments) { run_report(arguments.runs, arguments.out); });
  verb.add_option("runs", a.runs, "Runs, overlaid")->required();
  verb.add_option("--out", a.out, "File; report.html in the first run otherwise");
}

struct MixersArguments {
  std::vector<std::string> names;
  OutputForm form = OutputForm::text;
};

void add_mixers(VerbList& verbs) {
  auto [verb, a] =
      verbs.add<MixersArguments>("mixers", "The sequence mixers: what each supports, and its options",
                                 [](const MixersArguments& arguments) { run_mixers(arguments.names, arguments.form); });
  verb.add_option("names", a.names, "Mixers to show with their options; none: a table of all");
  add_json_option(verb, a.form);
}

void add_panel(VerbList& verbs) {
  auto [verb, a] = verbs.add<PanelArguments>(
      "panel", "Train recipes on synthetic tasks and write the table of their scores",
      [](const PanelArguments& arguments) { return run_panel(arguments) ? ExitCode::ok : ExitCode::internal; });
  verb.add_option("mixers", a.mixers, "Recipes by name; all of the folder otherwise");
  verb.add_option("--recipes", a.recipes, "Folder of recipes")->capture_default_str();
  verb.add_option("--out", a.out, "Folder of the runs")->capture_default_str();
  verb.add_option("--table", a.table, "File with the table")->capture_default_str();
  verb.add_option("--jobs", a.jobs, "Runs at a time, of one thread each")
      ->capture_default_str()
      ->check(CLI::Range(1, 1024));
  add_set_option(verb, a.overrides, "Change a value in every recipe");
}

}  // namespace

CommandLine::CommandLine() {
  app_.require_subcommand(1);
  VerbList verbs(*this);
  for (const auto add :
       {add_prepare, add_train_tokenizer, add_train, add_plan, add_verify, add_bench, add_eval, add_generate,
        add_import, add_export, add_inspect, add_fsck, add_report, add_mixers, add_panel}) {
    add(verbs);
  }
}

const CommandLine::Verb& CommandLine::chosen() const {
  for (const Verb& verb : verbs_) {
    if (verb.options->parsed()) return verb;
  }
  fail(ExitCode::internal, "no verb was chosen");
}

}  // namespace weft
