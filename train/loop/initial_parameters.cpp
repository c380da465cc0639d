#include "train/loop/initial_parameters.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "checkpoints/huggingface/hub_facts.h"
#include "data/storage/json.h"
#include "train/loop/run_folder.h"
#include "train/loop/training_state.h"

namespace weft {

std::string load_initial_parameters(const std::string& path, LanguageModel& model, const TokenizerIdentity& data,
                                    const Stream& stream) {
  if (!std::filesystem::exists(path)) config_error("model.init_from: {}: no such run or checkpoint", path);
  nlohmann::json origin;
  read_run_or_checkpoint(path, [&](const CheckpointReader& reader) {
    if (!tokenizer_identity_of(reader).name.empty()) check_same_tokenizer(reader, data, "the data");
    load_parameters(reader, model, stream);
    origin = nlohmann::json::parse(origin_of(reader));
    origin[kInitFromKey] = {{"path", path}, {"step", reader.step()}, {"digest", reader.digest()}};
  });
  return canonical(origin);
}

std::string origin_of(const CheckpointReader& reader) {
  nlohmann::json origin = nlohmann::json::object();
  const nlohmann::json& provenance = reader.provenance();
  for (const char* key : {kInitFromKey, kHubFactsKey, kImportedFromKey}) {
    if (provenance.contains(key)) origin[key] = provenance.at(key);
  }
  return canonical(origin);
}

}  // namespace weft
