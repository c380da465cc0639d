// A foreign model where it lies: a folder in Hugging Face's form, or a GGUF file, seen as one.
#pragma once

#include <filesystem>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "checkpoints/huggingface/target.h"
#include "checkpoints/tensor_source.h"
#include "data/tokenizers/tokenizer_files.h"

namespace weft {

struct HubFiles {
  std::string path;  // as messages call it
  const HubTarget* target = nullptr;
  HubModel model;
  std::shared_ptr<const nlohmann::json> config;  // config.json
  std::unique_ptr<TensorSource> tensors;
  std::vector<TokenizerFile> tokenizer;  // of a GGUF file; in folders they are files
};

// Reads config.json and the headers of the weights. Error (config, storage) for what is no model, and for models that
// weft does not have, with the reason.
HubFiles open_hub_model(const std::filesystem::path& path);

}  // namespace weft
