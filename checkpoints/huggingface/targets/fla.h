// Model types of the library flash-linear-attention: layers of KDA or of gated delta nets, softmax layers among them.
// That library needs a GPU to load a model, so these are checked by names and shapes alone, and `auto` never takes
// them.
#pragma once

#include "checkpoints/huggingface/target.h"

namespace weft {

const HubTarget& fla_kda_target();
const HubTarget& fla_gated_deltanet_target();

}  // namespace weft
