// Which class a model is exported as.
#pragma once

#include <string>

#include "checkpoints/huggingface/target.h"

namespace weft {

// `name`: of a target, or "auto": the recipe's export_profile, or where that is "none" the first target that expresses
// the model exactly. Error (config) with every obstacle.
const HubTarget& choose_target(const LanguageModelConfig& model, const std::string& name, const std::string& profile);

}  // namespace weft
