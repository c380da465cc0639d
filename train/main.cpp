// weft: the command line.

#include <CLI/CLI.hpp>
#include <charconv>
#include <cstdio>
#include <optional>

#include "train/loop/machine.h"
#include "train/verbs/verbs.h"

namespace {

using namespace weft;

OutputForm form_of(bool json) {
  return json ? OutputForm::json : OutputForm::text;
}

// The command line, verb by verb. Parsing fills the structs; `selected` runs what was asked for.
class CommandLine {
 public:
  CommandLine() {
    app_.require_subcommand(1);
    add_prepare();
    add_train_tokenizer();
    add_train();
    add_plan();
    add_verify();
    add_bench();
    add_eval();
    add_generate();
    add_export();
    add_import();
    add_files();
    add_mixers();
  }

  CLI::App& app() { return app_; }

  // True if several ranks may take part.
  bool collective() const { return *train_ || *eval_; }

  ExitCode run(World& world) {
    if (*train_) run_train(world, train_arguments_);
    if (*eval_) run_eval(world, eval_arguments_);
    return ExitCode::ok;
  }

  ExitCode run_alone() {
    if (*prepare_) {
      run_prepare(prepare_options_, form_of(json_));
    }
    if (*train_tokenizer_) run_train_tokenizer(train_tokenizer_options_, form_of(json_));
    if (*generate_) {
      generate_arguments_.form = form_of(json_);
      run_generate(generate_arguments_);
    }
    if (*export_) {
      export_arguments_.form = form_of(json_);
      run_export(export_arguments_);
    }
    if (*import_) {
      import_arguments_.form = form_of(json_);
      run_import(import_arguments_);
    }
    if (*plan_) {
      plan_arguments_.form = form_of(json_);
      run_plan(plan_arguments_);
    }
    if (*verify_) {
      verify_arguments_.form = form_of(json_);
      if (!run_verify(verify_arguments_)) return ExitCode::internal;
    }
    if (*bench_) {
      bench_arguments_.form = form_of(json_);
      run_bench(bench_arguments_);
    }
    if (*inspect_) run_inspect(path_, form_of(json_));
    if (*report_) run_report(runs_, out_);
    if (*mixers_) run_mixers(names_, form_of(json_));
    if (*panel_ && !run_panel(panel_arguments_)) return ExitCode::internal;
    if (*fsck_ && !run_fsck(path_)) return ExitCode::storage;
    return ExitCode::ok;
  }

 private:
  void add_prepare() {
    prepare_ = app_.add_subcommand("prepare", "Text or jsonl to a tokenised dataset");
    PrepareOptions& o = prepare_options_;
    prepare_->add_option("inputs", o.inputs, "Files, folders, patterns, or - for standard input")->required();
    prepare_->add_option("--out", o.out, "Folder of the dataset; must not exist")->required();
    prepare_->add_option("--tokenizer", o.tokenizer,
                         "byte, a tokenizer.json or tokenizer.model, or a folder that holds one");
    const std::map<std::string, InputFormat> formats = {
        {"auto", InputFormat::automatic}, {"text", InputFormat::text}, {"jsonl", InputFormat::jsonl}};
    prepare_->add_option("--format", o.format, "auto (by name), text or jsonl")
        ->transform(CLI::CheckedTransformer(formats));
    const std::map<std::string, TextSplit> splits = {
        {"file", TextSplit::file}, {"blank", TextSplit::blank}, {"delimiter", TextSplit::delimiter}};
    prepare_->add_option("--split", o.split, "What ends a document of text: file, blank (lines) or delimiter")
        ->transform(CLI::CheckedTransformer(splits));
    prepare_->add_option("--delimiter", o.delimiter, "The line between documents, for --split delimiter");
    prepare_->add_option("--text-field", o.text_field, "Member of a jsonl object that holds the text");
    prepare_->add_option("--invalid", invalid_, "Documents of invalid UTF-8: skip, or replace the bytes by U+FFFD")
        ->check(CLI::IsMember({"skip", "replace"}))
        ->each([this](const std::string& value) { prepare_options_.replace_invalid = value == "replace"; });
    prepare_->add_option("--dedup", dedup_, "exact: drop documents whose text came before")
        ->check(CLI::IsMember({"none", "exact"}))
        ->each([this](const std::string& value) { prepare_options_.dedup_exact = value == "exact"; });
    prepare_->add_option("--bos", bos_, "doc: begin each document with BOS")
        ->check(CLI::IsMember({"none", "doc"}))
        ->each([this](const std::string& value) { prepare_options_.bos = value == "doc"; });
    prepare_->add_option("--shuffle", shuffle_, "Seed of the order of documents, or none for input order")
        ->each([this](const std::string& value) { set_shuffle(value); });
    prepare_->add_option("--hold-out", o.validation_every, "Every N-th document goes to OUT-validation");
    prepare_->add_option("--threads", o.threads, "Encoders; 0: one a core");
    prepare_->add_option("--memory", o.memory, "Bytes to use, e.g. 4GiB")->transform(CLI::AsSizeValue(false));
    prepare_->add_option("--max-doc-bytes", o.max_doc_bytes, "Larger documents are skipped")
        ->transform(CLI::AsSizeValue(false));
    prepare_->add_flag("--json", json_, "Print the result as JSON");
  }

  void add_train_tokenizer() {
    train_tokenizer_ = app_.add_subcommand("train-tokenizer", "A byte-level BPE tokenizer.json of text or jsonl");
    TrainTokenizerOptions& o = train_tokenizer_options_;
    CLI::App& verb = *train_tokenizer_;
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
    verb.add_option("--min-count", o.min_count, "How often a pair has to occur to become a token")
        ->capture_default_str();
    verb.add_option("--limit", o.limit_bytes, "Bytes of text to read, e.g. 1GiB; 0: all")
        ->transform(CLI::AsSizeValue(false));
    verb.add_option("--max-words", o.max_words, "Distinct words to keep in memory, about 100 bytes each")
        ->capture_default_str()
        ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 31));
    const std::map<std::string, InputFormat> formats = {
        {"auto", InputFormat::automatic}, {"text", InputFormat::text}, {"jsonl", InputFormat::jsonl}};
    verb.add_option("--format", o.corpus.format, "auto (by name), text or jsonl")
        ->transform(CLI::CheckedTransformer(formats));
    verb.add_option("--text-field", o.corpus.text_field, "Member of a jsonl object that holds the text");
    verb.add_option("--threads", o.corpus.threads, "Readers; 0: one a core")->check(CLI::NonNegativeNumber);
    verb.add_flag("--json", json_, "Print the result as JSON");
  }

  void set_shuffle(const std::string& value) {
    if (value == "none") return prepare_options_.shuffle_seed.reset();
    const auto [end, error] =
        std::from_chars(value.data(), value.data() + value.size(), prepare_options_.shuffle_seed.emplace());
    if (error != std::errc() || end != value.data() + value.size()) {
      throw CLI::ValidationError("--shuffle", "\"" + value + "\" is neither a seed nor none");
    }
  }

  void add_train() {
    train_ = app_.add_subcommand("train", "Train the model of a recipe; goes on from the newest checkpoint");
    train_->add_option("recipe", train_arguments_.recipe, "TOML recipe")->required();
    train_->add_option("--set", train_arguments_.overrides, "Change a value: --set optimizer.learning_rate=1e-3")
        ->expected(1)
        ->allow_extra_args(false)
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
    train_->add_option("--resume", train_arguments_.resume, "auto, never, or a checkpoint");
  }

  void add_plan() {
    plan_ = app_.add_subcommand("plan", "What a step of a recipe will take: memory by kind, work, time");
    plan_->add_option("recipe", plan_arguments_.recipe, "TOML recipe")->required();
    plan_->add_option("--set", plan_arguments_.overrides, "Change a value: --set parallel.micro_batch_tokens=8192")
        ->expected(1)
        ->allow_extra_args(false)
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
    plan_->add_flag("--json", json_, "Print as JSON");
  }

  void add_verify() {
    verify_ = app_.add_subcommand("verify", "Each layer type of a recipe against fp64, on its device at its shapes");
    verify_->add_option("recipe", verify_arguments_.recipe, "TOML recipe")->required();
    verify_->add_option("--set", verify_arguments_.overrides, "Change a value: --set run.precision=fp32")
        ->expected(1)
        ->allow_extra_args(false)
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
    verify_
        ->add_option("--tokens", verify_arguments_.tokens,
                     "Tokens of each row to compare; 0: as many as fp64 computes in seconds")
        ->check(CLI::NonNegativeNumber);
    verify_->add_flag("--json", json_, "Print as JSON");
  }

  void add_bench() {
    bench_ = app_.add_subcommand("bench", "Times of operations and mixers, or of a training step, beside their floors");
    BenchArguments& a = bench_arguments_;
    CLI::Option* filter = bench_->add_option("filter", a.filter, "Those whose names contain it; otherwise all");
    CLI::Option* recipe = bench_->add_option("--recipe", a.recipe, "A training step of this TOML recipe instead");
    recipe->excludes(filter);
    bench_->add_option("--set", a.overrides, "Change a value of the recipe")
        ->expected(1)
        ->allow_extra_args(false)
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
        ->needs(recipe);
    bench_->add_option("--device", a.device, "auto, cpu or cuda; with a recipe, its run.device counts")
        ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
        ->excludes(recipe);
    bench_->add_flag("--json", json_, "Print as JSON, a line for each row");
  }

  void add_eval() {
    eval_ = app_.add_subcommand(
        "eval", "Loss, perplexity and bits per byte of a run or checkpoint, or how well it solves a task");
    eval_->add_option("model", eval_arguments_.path, "Run or checkpoint")->required();
    eval_->add_option("--data", eval_arguments_.data, "Dataset; the recipe's validation data otherwise");
    eval_->add_option("--tokens", eval_arguments_.tokens, "Tokens of it to score; 0: all")
        ->check(CLI::NonNegativeNumber);
    eval_->add_option("--sequence-length", eval_arguments_.sequence_length, "Row length; the recipe's otherwise")
        ->check(CLI::Range(std::int64_t{2}, std::int64_t{1} << 28));
    eval_
        ->add_option("--requests", eval_arguments_.requests,
                     "JSON lines {\"context\", \"continuation\"} to score instead: log-likelihoods, as JSON lines")
        ->excludes("--data", "--tokens", "--sequence-length");
    eval_->add_flag("--bigram", eval_arguments_.bigram, "Score a bigram model of the training data beside it");
    eval_->add_option("--task", eval_arguments_.task, "Score a synthetic task: NAME, or without it the recipe's own")
        ->expected(0, 1)
        ->default_str("")
        ->excludes("--data", "--tokens", "--sequence-length", "--bigram");
    eval_->add_option("--set", eval_arguments_.overrides, "Change an option of the task: --set length=128")
        ->expected(1)
        ->allow_extra_args(false)
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
        ->needs("--task");
    eval_->add_flag_callback(
        "--json", [this] { eval_arguments_.form = OutputForm::json; }, "Print as JSON");
  }

  void add_generate() {
    generate_ = app_.add_subcommand("generate", "Text from a run or checkpoint");
    GenerateArguments& a = generate_arguments_;
    generate_->add_option("model", a.path, "Run or checkpoint")->required();
    generate_->add_option("--prompt", a.prompt, "Text to go on from");
    const std::map<std::string, EncodeMode> modes = {
        {"prompt", EncodeMode::prompt}, {"markup", EncodeMode::markup}, {"text", EncodeMode::text}};
    generate_
        ->add_option(
            "--prompt-as", a.mode,
            "prompt (special tokens count, BOS as the tokenizer's template says), markup (without template) or "
            "text (special tokens are text)")
        ->transform(CLI::CheckedTransformer(modes));
    generate_->add_option("--tokens", a.tokens, "At most this many")->check(CLI::PositiveNumber);
    generate_->add_option("--temperature", a.sampling.temperature, "0: always the most likely token")
        ->check(CLI::NonNegativeNumber);
    generate_->add_option("--top-k", a.sampling.top_k, "Of the K most likely tokens only; 0: all")
        ->check(CLI::NonNegativeNumber);
    generate_->add_option("--top-p", a.sampling.top_p, "Of the most likely tokens with this much probability")
        ->check(CLI::Range(0.0, 1.0));
    generate_->add_option("--seed", a.sampling.seed, "Of the random choices");
    generate_->add_flag("--json", json_, "Print the result as JSON");
  }

  void add_export() {
    export_ = app_.add_subcommand("export", "A run or checkpoint as a directory that transformers loads");
    ExportArguments& a = export_arguments_;
    export_->add_option("model", a.path, "Run or checkpoint")->required();
    export_->add_option("--out", a.out, "Folder to make; must not exist")->required();
    export_->add_option("--to", a.target, "Class of models: auto, or the name of one")->capture_default_str();
    export_->add_option("--dtype", a.dtype, "Of the weights: bf16, f16 or fp32")
        ->capture_default_str()
        ->check(CLI::IsMember({"bf16", "f16", "fp32"}));
    export_->add_option("--shard-size", a.shard_bytes, "Largest file of weights, e.g. 2GB; 5 GB otherwise")
        ->transform(CLI::AsSizeValue(true));
    export_->add_option("--verify", a.verify, "weft: reread and compare; python: load it in transformers, too")
        ->capture_default_str()
        ->check(CLI::IsMember({"weft", "python"}));
    export_->add_option("--python", a.python, "Interpreter for --verify python")->capture_default_str();
    export_->add_flag("--json", json_, "Print the result as JSON");
  }

  void add_import() {
    import_ =
        app_.add_subcommand("import", "A model of Hugging Face's form to a run that eval, generate and train take");
    import_->add_option("model", import_arguments_.path, "Folder with config.json and safetensors, or a .gguf file")
        ->required();
    import_->add_option("--out", import_arguments_.out, "Folder of the run; must not exist")->required();
    import_->add_flag("--json", json_, "Print the result as JSON");
  }

  void add_files() {
    inspect_ = app_.add_subcommand("inspect", "Describe a dataset, run, checkpoint or shard");
    inspect_->add_option("path", path_)->required();
    inspect_->add_flag("--json", json_, "Print as JSON");
    fsck_ = app_.add_subcommand("fsck", "Verify every byte of a run, checkpoint or dataset");
    fsck_->add_option("path", path_)->required();
    report_ = app_.add_subcommand("report", "One HTML page with the curves of runs");
    report_->add_option("runs", runs_, "Runs, overlaid")->required();
    report_->add_option("--out", out_, "File; report.html in the first run otherwise");
  }

  void add_mixers() {
    mixers_ = app_.add_subcommand("mixers", "The sequence mixers: what each supports, and its options");
    mixers_->add_option("names", names_, "Mixers to show with their options; none: a table of all");
    mixers_->add_flag("--json", json_, "Print as JSON");
    panel_ = app_.add_subcommand("panel", "Train recipes on synthetic tasks and write the table of their scores");
    PanelArguments& a = panel_arguments_;
    panel_->add_option("mixers", a.mixers, "Recipes by name; all of the folder otherwise");
    panel_->add_option("--recipes", a.recipes, "Folder of recipes")->capture_default_str();
    panel_->add_option("--out", a.out, "Folder of the runs")->capture_default_str();
    panel_->add_option("--table", a.table, "File with the table")->capture_default_str();
    panel_->add_option("--jobs", a.jobs, "Runs at a time, of one thread each")
        ->capture_default_str()
        ->check(CLI::Range(1, 1024));
    panel_->add_option("--set", a.overrides, "Change a value in every recipe")
        ->expected(1)
        ->allow_extra_args(false)
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  }

  CLI::App app_{"weft trains language models whose layers mix linear and sparse attention.", "weft"};
  CLI::App *prepare_ = nullptr, *train_ = nullptr, *eval_ = nullptr, *generate_ = nullptr, *inspect_ = nullptr,
           *fsck_ = nullptr, *report_ = nullptr, *plan_ = nullptr, *verify_ = nullptr, *mixers_ = nullptr,
           *panel_ = nullptr, *export_ = nullptr, *import_ = nullptr, *train_tokenizer_ = nullptr, *bench_ = nullptr;
  PrepareOptions prepare_options_;
  TrainTokenizerOptions train_tokenizer_options_;
  TrainArguments train_arguments_;
  PlanArguments plan_arguments_;
  VerifyArguments verify_arguments_;
  BenchArguments bench_arguments_;
  EvalArguments eval_arguments_;
  GenerateArguments generate_arguments_;
  ExportArguments export_arguments_;
  ImportArguments import_arguments_;
  PanelArguments panel_arguments_;
  std::string invalid_, dedup_, bos_, shuffle_, path_, out_;
  std::vector<std::string> runs_, names_;
  bool json_ = false;
};

int print_error(const std::string& message, ExitCode code, const std::optional<World>& world) {
  const std::string rank = world && world->size() > 1 ? fmt::format(" (rank {})", world->rank()) : "";
  fmt::print(stderr, "weft{}: {}\n", rank, message);
  return static_cast<int>(code);
}

}  // namespace

int main(int argc, char** argv) {
  CommandLine line;
  try {
    line.app().parse(argc, argv);
  } catch (const CLI::CallForHelp& help) {
    return line.app().exit(help);
  } catch (const CLI::ParseError& error) {
    fmt::print(stderr, "weft: {}\nRun `weft --help` for what can be asked.\n", error.what());
    return static_cast<int>(ExitCode::config);
  }
  std::optional<World> world;
  ExitCode code = ExitCode::ok;
  int status = 0;
  try {
    check_processor();
    if (!line.collective()) return static_cast<int>(line.run_alone());
    world.emplace(World::launch());
    code = line.run(*world);
    world->finalise();
    return static_cast<int>(code);
  } catch (const Error& error) {
    code = error.code();
    status = print_error(error.what(), code, world);
  } catch (const std::bad_alloc&) {
    code = ExitCode::internal;
    status = print_error("out of memory", code, world);
  } catch (const std::exception& error) {
    code = ExitCode::internal;
    status = print_error(fmt::format("internal error: {}", error.what()), code, world);
  }
  // The other ranks wait for this one: end them too.
  if (world && world->size() > 1) world->abort(code);
  return status;
}
