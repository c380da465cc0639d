#include "checkpoints/huggingface/hub_facts.h"

#include <limits>
#include <nlohmann/json.hpp>

#include "autograd/check.h"
#include "data/storage/json.h"
#include "data/storage/text.h"

namespace weft {
namespace {

constexpr std::int64_t kMostId = std::numeric_limits<std::int32_t>::max();

}  // namespace

HubFacts hub_facts_of(const HubTarget& target, const HubModel& model) {
  return {.target = target.name,
          .max_positions = model.max_positions,
          .bos = model.bos,
          .pad = model.pad,
          .eos = model.eos};
}

nlohmann::json to_json(const HubFacts& facts) {
  return {{"target", facts.target},
          {"max_positions", facts.max_positions},
          {"bos", facts.bos},
          {"pad", facts.pad},
          {"eos", facts.eos}};
}

std::optional<HubFacts> read_hub_facts(const nlohmann::json& provenance, const std::string& source) {
  if (!provenance.contains(kHubFactsKey)) return std::nullopt;
  const nlohmann::json& object = require_object(provenance, kHubFactsKey, source);
  HubFacts facts{.target = require_string(object, "target", source),
                 .max_positions = require_int(object, "max_positions", source, 0),
                 .bos = static_cast<std::int32_t>(require_int(object, "bos", source, -1, kMostId)),
                 .pad = static_cast<std::int32_t>(require_int(object, "pad", source, -1, kMostId)),
                 .eos = {}};
  for (const nlohmann::json& id : require_array(object, "eos", source)) {
    if (!id.is_number_integer() || id.get<std::int64_t>() < 0 || id.get<std::int64_t>() > kMostId) {
      storage_error("{}: key \"eos\" holds {}, token ids are expected", source, printable(id.dump()));
    }
    facts.eos.push_back(id.get<std::int32_t>());
  }
  return facts;
}

}  // namespace weft
