// What a model's foreign config says beside the recipe, as runs and checkpoints pass it on: a fine-tuned model is
// exported with the numbers of the one it was made from.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "checkpoints/huggingface/target.h"

namespace weft {

struct HubFacts {
  std::string target;  // as in hub_targets()
  std::int64_t max_positions = 0;
  std::int32_t bos = -1, pad = -1;  // -1: none
  std::vector<std::int32_t> eos;
  bool operator==(const HubFacts&) const = default;
};

HubFacts hub_facts_of(const HubTarget& target, const HubModel& model);
nlohmann::json to_json(const HubFacts& facts);
// The key of a checkpoint's provenance under which they are.
inline constexpr const char* kHubFactsKey = "hub";
// The key of the path that it was imported from.
inline constexpr const char* kImportedFromKey = "imported_from";
// From a checkpoint's provenance; nothing if the model was not imported. Error (storage) naming `source` if they are
// not of that form.
std::optional<HubFacts> read_hub_facts(const nlohmann::json& provenance, const std::string& source);

}  // namespace weft
