#include "checkpoints/huggingface/hub_files.h"

#include <nlohmann/json.hpp>

#include "autograd/check.h"
#include "checkpoints/safetensors/reader.h"
#include "data/storage/json.h"

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
  HubFiles files = describe(folder, read_json_file(config.string(), kMaxConfigBytes), config.string());
  files.tensors = std::make_unique<SafetensorsDirectory>(folder, LinkTargets::inside_the_hub_cache);
  return files;
}

}  // namespace

HubFiles open_hub_model(const fs::path& path) {
  if (!fs::exists(path)) config_error("{}: no such folder or file", path.string());
  if (fs::is_directory(path)) return open_folder(path);
  config_error("{}: expected the folder of a model, with config.json and its weights as safetensors", path.string());
}

}  // namespace weft
