// Qwen3_5ForCausalLM, the text model of Qwen3.5.
#pragma once

#include "checkpoints/huggingface/target.h"

namespace weft {

const HubTarget& qwen3_5_target();

}  // namespace weft
