// README.md of an exported model.
#pragma once

#include <string>

#include "checkpoints/huggingface/target.h"
#include "train/loop/run_folder.h"

namespace weft {

// What is known of the model and, by its checkpoint's provenance, of the one that it was made from; and places for what
// only its maker knows.
std::string model_card(const LoadedModel& loaded, const HubTarget& target);

}  // namespace weft
