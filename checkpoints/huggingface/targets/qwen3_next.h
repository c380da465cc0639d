// Qwen3NextForCausalLM with dense feed-forward networks in all layers (mlp_only_layers).
#pragma once

#include "checkpoints/huggingface/target.h"

namespace weft {

const HubTarget& qwen3_next_target();

}  // namespace weft
