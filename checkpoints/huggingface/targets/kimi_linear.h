// KimiLinearForCausalLM with dense feed-forward networks in all layers.
#pragma once

#include "checkpoints/huggingface/target.h"

namespace weft {

const HubTarget& kimi_linear_target();

}  // namespace weft
