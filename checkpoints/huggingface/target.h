// The model classes of other libraries that weft reads and writes, one entry each.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoints/huggingface/tensor_rule.h"
#include "modules/language_model.h"

namespace weft {

// What a model directory says beside its tensors.
struct HubModel {
  LanguageModelConfig model;       // `vocabulary` is the number of embedding rows
  std::int64_t max_positions = 0;  // longest text the model was made for
  std::int32_t bos = -1;           // -1: none
  std::vector<std::int32_t> eos;   // any of them ends a text
  std::int32_t pad = -1;
};

// A class of models: which of weft's are exactly of it, its config.json, and its tensors.
struct HubTarget {
  std::string name;        // as in `weft export --to NAME`, e.g. "qwen3"
  std::string model_type;  // of config.json
  std::string summary;     // one line

  // Why the class cannot express a model, one line for each reason, naming recipe keys; empty: it can, exactly.
  std::vector<std::string> (*obstacles)(const LanguageModelConfig& model);
  // config.json.
  nlohmann::json (*write_config)(const HubModel& model);
  // The inverse. Error (config) naming the field for everything that changes the function and is not understood.
  HubModel (*read_config)(const nlohmann::json& config, const std::string& source);
  // Every tensor of the class; together they hold each element of each parameter exactly once.
  std::vector<TensorRule> (*tensors)(const LanguageModelConfig& model);
};

// In the order in which `weft export --to auto` tries them.
const std::vector<HubTarget>& hub_targets();
// nullptr if there is none.
const HubTarget* find_hub_target(std::string_view name);
// The target of a config.json, by its model_type. Error (config) if weft has none.
const HubTarget& hub_target_of(const nlohmann::json& config, const std::string& source);

}  // namespace weft
