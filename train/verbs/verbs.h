// What the program can do, one function a verb. command_line.cpp fills these structs. Each throws Error;
// results for people go to standard output.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "data/prepare/prepare.h"
#include "data/train_tokenizer/train_tokenizer.h"
#include "parallel/launch.h"
#include "train/generate/generate.h"

namespace weft {

enum class OutputForm : std::uint8_t { text, json };

void run_prepare(const PrepareOptions& options, OutputForm form);

void run_train_tokenizer(const TrainTokenizerOptions& options, OutputForm form);

struct TrainArguments {
  std::string recipe;
  std::vector<std::string> overrides;  // key=value
  std::string resume = "auto";
};
void run_train(World& world, const TrainArguments& arguments);

struct PlanArguments {
  std::string recipe;
  std::vector<std::string> overrides;  // key=value
  OutputForm form = OutputForm::text;
};
// Memory, work and time of a step. Error (config) if it does not fit, naming the largest parts.
void run_plan(const PlanArguments& arguments);

struct VerifyArguments {
  std::string recipe;
  std::vector<std::string> overrides;  // key=value
  std::int64_t tokens = 0;             // compared of each row, at most; 0: as many as fp64 can afford
  OutputForm form = OutputForm::text;
};
// False if a layer is further from fp64 than it may be.
bool run_verify(const VerifyArguments& arguments);

struct BenchArguments {
  std::string filter;                  // of operations and mixers, by name
  std::string recipe;                  // a step of this one instead
  std::vector<std::string> overrides;  // key=value of the recipe
  bool decode = false;                 // of its model: a prompt, then token by token, instead of a step
  std::int64_t prompt = 2048;          // tokens
  std::string device = "auto";         // for operations and mixers
  OutputForm form = OutputForm::text;  // json: a line for each row
};
void run_bench(const BenchArguments& arguments);

struct EvalArguments {
  std::string path;                    // run or checkpoint
  std::string data;                    // dataset; empty: the recipe's validation data
  std::int64_t tokens = 0;             // of the dataset; 0: all
  std::int64_t sequence_length = 0;    // 0: the recipe's
  std::string requests;                // score continuations instead: a file of JSON lines
  bool bigram = false;                 // also score a bigram model of the recipe's training data
  std::optional<std::string> task;     // score this synthetic task instead; empty: the recipe's own
  std::vector<std::string> overrides;  // key=value of the task
  std::string device;                  // auto, cpu, cuda; empty: as InferenceDevice chooses
  OutputForm form = OutputForm::text;
};
void run_eval(World& world, const EvalArguments& arguments);

struct GenerateArguments {
  std::string path;  // run or checkpoint
  std::string prompt;
  EncodeMode mode = EncodeMode::prompt;
  std::int64_t tokens = 256;
  SamplingOptions sampling;
  std::string device;  // as in EvalArguments
  OutputForm form = OutputForm::text;
};
void run_generate(const GenerateArguments& arguments);

struct ExportArguments {
  std::string path;             // run or checkpoint
  std::string out;              // folder; must not exist
  std::string target = "auto";  // or the name of a target
  std::string dtype = "bf16";   // bf16, f16, fp32
  std::uint64_t shard_bytes = 5'000'000'000;
  std::string verify = "weft";     // "python": in transformers, too
  std::string python = "python3";  // interpreter for that
  double verify_seconds = 60.0;    // that each of weft and Python compares for, about
  OutputForm form = OutputForm::text;
};
// Writes a directory that transformers loads. It appears under its name after it was reread and compared.
void run_export(const ExportArguments& arguments);

struct ImportArguments {
  std::string path;  // folder of a foreign model
  std::string out;   // run folder to make
  OutputForm form = OutputForm::text;
};
void run_import(const ImportArguments& arguments);

struct PanelArguments {
  std::vector<std::string> mixers;        // names of recipes; empty: all
  std::string recipes = "recipes/panel";  // folder
  std::string out = "runs/panel";         // folder of the runs, NAME-TASK; older ones of the same names are removed
  std::string table = "docs/mixers.md";   // file with the table
  std::int64_t jobs = 2;                  // runs at a time, of one thread each
  std::vector<std::string> overrides;     // key=value, for every run
};
// False if a run failed.
bool run_panel(const PanelArguments& arguments);

// All mixers as a table, or those of `names` with their options.
void run_mixers(const std::vector<std::string>& names, OutputForm form);
// A checkpoint, a dataset, a run, or a single shard file.
void run_inspect(const std::string& path, OutputForm form);
void run_report(const std::vector<std::string>& runs, const std::string& out);
// False if anything is damaged.
bool run_fsck(const std::string& path);

}  // namespace weft
