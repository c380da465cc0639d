#include "train/hub/python_check.h"

#include <nlohmann/json.hpp>

#include "autograd/check.h"
#include "checkpoints/huggingface/remote_code.h"
#include "data/storage/file.h"
#include "data/storage/json.h"
#include "train/hub/expected_outputs.h"
#include "train/verbs/child.h"

namespace weft {
namespace fs = std::filesystem;
namespace {

constexpr std::uint64_t kMostOutput = std::uint64_t{16} << 20;

// A folder that goes with the object.
class TemporaryFolder {
 public:
  explicit TemporaryFolder(const fs::path& parent) : path_(parent / ("weft-check-" + random_nonce())) {
    std::error_code error;
    if (!fs::create_directory(path_, error)) storage_error("cannot create {}: {}", path_.string(), error.message());
  }
  ~TemporaryFolder() {
    std::error_code error;
    fs::remove_all(path_, error);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  fs::path operator/(const char* name) const { return path_ / name; }
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

std::string text_of(const fs::path& path) {
  return fs::exists(path) ? read_small_file(path, kMostOutput) : std::string();
}

// Error (storage) if one of the comparisons had nothing to compare.
void require_comparisons(const nlohmann::json& figures, bool with_ids, const fs::path& directory) {
  std::vector<const char*> wanted = {"sequences", "greedy_tokens"};
  if (with_ids) wanted.push_back("texts");
  for (const char* name : wanted) {
    if (figures.value(name, 0) > 0) continue;
    storage_error("{}: the check in Python compared nothing: no {}", directory.string(), name);
  }
}

}  // namespace

void require_python(const std::string& python) {
  const TemporaryFolder folder(fs::temp_directory_path());
  const fs::path out = folder / "versions.txt", err = folder / "versions.err";
  const int status = run_program({python, "-c", "import torch, transformers, safetensors"}, {}, out, err).status;
  if (status == 127) {
    config_error("--verify python: there is no {}; name an interpreter with --python PATH, or leave --verify out",
                 python);
  }
  if (status != 0) {
    config_error(
        "--verify python: {} cannot import torch, transformers and safetensors; install them, name another interpreter "
        "with --python PATH, or leave --verify out\n{}",
        python, text_of(err));
  }
}

nlohmann::json check_in_python(LanguageModel& model, const Tokenizer* tokenizer, const fs::path& directory,
                               const std::string& python, double seconds) {
  // Inside, so that both go together if the process is stopped.
  const TemporaryFolder folder(fs::absolute(directory));
  const EmbeddedFile* check = find_embedded_file("check.py");
  WEFT_CHECK(check != nullptr, "the check is part of the binary");
  write_file_atomically(folder / "check.py", check->text);
  const std::optional<std::int64_t> finite_tokens = write_expected_outputs(model, tokenizer, seconds, folder.path());
  const fs::path report = folder / "report.json", out = folder / "out.txt", err = folder / "err.txt";
  const ChildResult result =
      run_program({python, (folder / "check.py").string(), fs::absolute(directory).string(), "--quick", "--expected",
                   (folder / "expected.safetensors").string(), "--report", report.string(), "--seconds",
                   fmt::format("{}", seconds)},
                  {"HF_HUB_OFFLINE=1", "TOKENIZERS_PARALLELISM=false", "PYTHONDONTWRITEBYTECODE=1",
                   "HF_MODULES_CACHE=" + (folder / "modules").string()},
                  out, err);
  if (!fs::exists(report)) {
    storage_error("{}: the check in Python ended with status {} and no result:\n{}{}", directory.string(),
                  result.status, text_of(out), text_of(err));
  }
  const nlohmann::json all = read_json_file(report.string(), kMostOutput);
  nlohmann::json figures = all.at("directories").begin().value();
  if (result.status != 0 || !figures.at("failures").empty()) {
    std::string lines;
    for (const nlohmann::json& failure : figures.at("failures")) lines += "\n  " + failure.get<std::string>();
    storage_error("{}: transformers {} does not compute what weft does:{}", directory.string(),
                  all.at("transformers").get<std::string>(), lines);
  }
  figures.erase("failures");
  if (finite_tokens) figures["not_finite_after"] = *finite_tokens;
  require_comparisons(figures, tokenizer != nullptr && !figures.contains("transformers_tokenizer"), directory);
  return {{"torch", all.at("torch")}, {"transformers", all.at("transformers")}, {"figures", std::move(figures)}};
}

}  // namespace weft
