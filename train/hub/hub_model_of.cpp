#include "train/hub/hub_model_of.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "checkpoints/huggingface/hub_facts.h"
#include "checkpoints/reader.h"

namespace weft {

HubModel hub_model_of(const LoadedModel& loaded) {
  HubModel hub{.model = loaded.model->config(), .max_positions = loaded.recipe.data.sequence_length, .eos = {}};
  const CheckpointReader checkpoint(loaded.checkpoint);
  if (const auto facts = read_hub_facts(checkpoint.provenance(), loaded.checkpoint.string())) {
    hub.max_positions = facts->max_positions;
    hub.bos = facts->bos;
    hub.pad = facts->pad;
    hub.eos = facts->eos;
  } else if (loaded.tokenizer != nullptr) {
    hub.bos = static_cast<std::int32_t>(loaded.tokenizer->bos_id());
    if (loaded.tokenizer->eos_id() >= 0) hub.eos = {static_cast<std::int32_t>(loaded.tokenizer->eos_id())};
  }
  if (loaded.tokenizer != nullptr) {
    // The first one stays first: readers that want one take that.
    for (const std::int32_t id : stop_ids(loaded.tokenizer_files)) {
      if (std::ranges::find(hub.eos, id) == hub.eos.end()) hub.eos.push_back(id);
    }
  }
  return hub;
}

}  // namespace weft
