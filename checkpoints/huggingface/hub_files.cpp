#include "checkpoints/huggingface/hub_files.h"

#include <nlohmann/json.hpp>

#include "autograd/check.h"
#include "checkpoints/gguf/model.h"
#include "checkpoints/huggingface/tensor_map.h"
#include "checkpoints/safetensors/index.h"
#include "checkpoints/safetensors/reader.h"
#include "data/storage/json.h"
#include "data/storage/links.h"
#include "data/storage/text.h"

namespace weft {
namespace fs = std::filesystem;
namespace {

constexpr std::uint64_t kMaxConfigBytes = 1 << 20;

HubFiles describe(const fs::path& path, nlohmann::json config, const std::string& source) {
  HubFiles files;
  files.path = path.string();
  files.target = &hub_target_of(config, source);
  files.model = files.target->read_config(config, source);
  files.config = std::make_shared<const nlohmann::json>(std::move(config));
  return files;
}

HubFiles open_folder(const fs::path& folder) {
  const fs::path config = folder / "config.json";
  if (!fs::exists(config)) {
    config_error("{}: there is no config.json; expected the folder of a model, with its weights as safetensors",
                 folder.string());
  }
  HubFiles files =
      describe(folder, parse_strict(read_model_file(config, kMaxConfigBytes), config.string(), kMaxConfigBytes),
               config.string());
  auto weights = std::make_unique<SafetensorsDirectory>(folder, LinkTargets::inside_the_hub_cache);
  // A bias that the index forgot would be lost.
  for (const std::string& name : weights->extra_tensors()) {
    if (follows_from_config(name)) continue;
    storage_error("{}: tensor \"{}\" is in a file but not in {}; the index is out of date", folder.string(),
                  printable(name), kIndexFileName);
  }
  files.tensors = std::move(weights);
  return files;
}

// A GGUF file and its tensors under Hugging Face's names.
class GgufModel final : public TensorSource {
 public:
  explicit GgufModel(const fs::path& path) : file(path), renamed_(file) {}
  const std::vector<SourceTensor>& tensors() const override { return renamed_.tensors(); }
  std::string where(std::string_view name) const override { return renamed_.where(name); }
  void read_floats(std::string_view name, std::int64_t row_begin, std::int64_t row_end,
                   std::span<float> out) const override {
    renamed_.read_floats(name, row_begin, row_end, out);
  }

  const GgufFile file;

 private:
  GgufModelTensors renamed_;
};

HubFiles open_gguf(const fs::path& path) {
  auto model = std::make_unique<GgufModel>(path);
  const std::string source = path.string();
  HubFiles files = describe(path, parse_strict(gguf_config_json(model->file), source, kMaxConfigBytes), source);
  files.tokenizer = gguf_tokenizer_files(model->file);
  files.tensors = std::move(model);
  return files;
}

}  // namespace

HubFiles open_hub_model(const fs::path& path) {
  if (!fs::exists(path)) config_error("{}: no such folder or file", path.string());
  if (fs::is_directory(path)) return open_folder(path);
  if (path.extension() == ".gguf") return open_gguf(path);
  config_error("{}: expected the folder of a model, with config.json and its weights as safetensors, or a .gguf file",
               path.string());
}

}  // namespace weft
