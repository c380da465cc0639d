// Which class a model is exported as.
#pragma once

#include <string>

#include "checkpoints/huggingface/target.h"

namespace weft {

// `name`: of a target, or "auto", the first that expresses the model exactly. Error (config) with every obstacle.
const HubTarget& choose_target(const LanguageModelConfig& model, const std::string& name);

}  // namespace weft
