#include "train/hub/python_check.h"

#include <array>
#include <bit>
#include <map>
#include <nlohmann/json.hpp>

#include "checkpoints/huggingface/export.h"
#include "checkpoints/huggingface/remote_code.h"
#include "checkpoints/safetensors/writer.h"
#include "data/storage/file.h"
#include "data/storage/json.h"
#include "train/generate/generate.h"
#include "train/verbs/child.h"

namespace weft {
namespace fs = std::filesystem;
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr std::array<std::int64_t, 6> kLengths = {1, 2, 63, 64, 65, 257};
constexpr std::array<std::int64_t, 3> kPrompts = {1, 33, 80};
constexpr std::int64_t kGreedyTokens = 48;
// Of all logits that are compared: 256 MiB.
constexpr std::int64_t kMostLogits = std::int64_t{64} << 20;
constexpr std::uint64_t kMostOutput = std::uint64_t{16} << 20;

// A folder that goes with the object.
class TemporaryFolder {
 public:
  TemporaryFolder() : path_(fs::temp_directory_path() / ("weft-check-" + random_nonce())) {
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

// Pairs ids.N, logits.N of whole sequences and prompt.N, greedy.N of text that begins with the prompt.
void write_expected(LanguageModel& model, const fs::path& path) {
  const std::int64_t V = model.config().vocabulary;
  std::map<std::string, Tensor> tensors;
  const auto put = [&](const std::string& name, const std::vector<std::int32_t>& ids) {
    tensors[name] =
        Tensor::from({static_cast<std::int64_t>(ids.size())}, std::vector<std::int64_t>(ids.begin(), ids.end()));
  };
  std::int64_t logits = 0;
  for (std::size_t i = 0; i < kLengths.size(); ++i) {
    logits += kLengths[i] * V;
    if (i > 0 && logits > kMostLogits) break;
    const std::vector<std::int32_t> ids = probe_tokens(kLengths[i], V);
    put(fmt::format("ids.{}", i), ids);
    tensors[fmt::format("logits.{}", i)] = logits_of(model, ids);
  }
  for (std::size_t i = 0; i < kPrompts.size(); ++i) {
    const std::vector<std::int32_t> prompt = probe_tokens(kPrompts[i], V);
    const GenerateOptions options{.tokens = kGreedyTokens, .stop = {}, .sampling = {.temperature = 0.0}};
    put(fmt::format("prompt.{}", i), prompt);
    put(fmt::format("greedy.{}", i), generate(model, cpu_place(), prompt, options).tokens);
  }
  std::vector<TensorDeclaration> declarations;
  for (const auto& [name, tensor] : tensors) {
    declarations.push_back({.name = name,
                            .dtype = tensor.dtype() == DType::i64 ? SafetensorsDType::i64 : SafetensorsDType::f32,
                            .shape = {tensor.shape().begin(), tensor.shape().end()}});
  }
  write_safetensors_file(path, declarations, [&](const TensorDeclaration& declaration, TensorSink& sink) {
    const Tensor& tensor = tensors.at(declaration.name);
    if (tensor.dtype() == DType::i64) {
      sink.write_bytes(std::as_bytes(tensor.span<std::int64_t>()));
    } else {
      sink.write_floats(tensor.span<float>());
    }
  });
}

std::string text_of(const fs::path& path) {
  return fs::exists(path) ? read_small_file(path, kMostOutput) : std::string();
}

}  // namespace

void require_python(const std::string& python) {
  const TemporaryFolder folder;
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

nlohmann::json check_in_python(LanguageModel& model, const fs::path& directory, const std::string& python) {
  const TemporaryFolder folder;
  const EmbeddedFile* check = find_embedded_file("check.py");
  WEFT_CHECK(check != nullptr, "the check is part of the binary");
  write_file_atomically(folder / "check.py", check->text);
  write_expected(model, folder / "expected.safetensors");
  const fs::path report = folder / "report.json", out = folder / "out.txt", err = folder / "err.txt";
  const ChildResult result =
      run_program({python, (folder / "check.py").string(), fs::absolute(directory).string(), "--quick", "--expected",
                   (folder / "expected.safetensors").string(), "--report", report.string()},
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
  return {{"torch", all.at("torch")}, {"transformers", all.at("transformers")}, {"figures", std::move(figures)}};
}

}  // namespace weft
