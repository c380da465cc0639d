// MiniMaxForCausalLM with one expert, to which its router sends every token.
#pragma once

#include "checkpoints/huggingface/target.h"

namespace weft {

const HubTarget& minimax_target();

}  // namespace weft
