// inspect, fsck, report: what works on files alone.

#include <filesystem>
#include <nlohmann/json.hpp>

#include "checkpoints/fsck.h"
#include "checkpoints/inspect.h"
#include "data/dataset.h"
#include "train/report/report.h"
#include "train/verbs/verbs.h"

namespace weft {
namespace fs = std::filesystem;
namespace {

bool is_dataset(const fs::path& path) {
  return fs::exists(path / "dataset.json");
}

void check_exists(const std::string& path) {
  if (!fs::exists(path)) config_error("{}: no such file or folder", path);
}

nlohmann::json dataset_json(const std::string& folder) {
  const Dataset dataset(folder);
  return {{"dataset", folder},
          {"digest", dataset.digest()},
          {"tokenizer", dataset.manifest().tokenizer_name},
          {"tokenizer_fingerprint", dataset.manifest().tokenizer_fingerprint},
          {"vocabulary", dataset.vocab_size()},
          {"documents", dataset.n_docs()},
          {"tokens", dataset.n_tokens()},
          {"text_bytes", dataset.manifest().text_bytes},
          {"shards", dataset.manifest().shards.size()}};
}

}  // namespace

void run_inspect(const std::string& path, OutputForm form) {
  check_exists(path);
  if (is_dataset(path)) {
    fmt::print("{}\n", form == OutputForm::json ? dataset_json(path).dump(2) : describe_dataset(path));
    return;
  }
  fmt::print("{}\n", form == OutputForm::json ? inspect_checkpoint_json(path).dump(2) : inspect_checkpoint_text(path));
}

bool run_fsck(const std::string& path) {
  check_exists(path);
  if (is_dataset(path)) {
    try {
      verify_dataset(path);
    } catch (const Error& error) {
      fmt::print("{}: damaged: {}\n", path, error.what());
      return false;
    }
    fmt::print("{}: good\n", path);
    return true;
  }
  return fsck(path, [](const std::string& line) { fmt::print("{}\n", line); });
}

void run_report(const std::vector<std::string>& runs, const std::string& out) {
  for (const std::string& run : runs) check_exists(run);
  const std::string path = out.empty() ? (fs::path(runs.front()) / "report.html").string() : out;
  write_report(runs, path);
  fmt::print("{}\n", path);
}

}  // namespace weft
