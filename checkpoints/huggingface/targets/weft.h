// weft's own model type: every model, by Python files that lie beside the weights.
#pragma once

#include "checkpoints/huggingface/target.h"

namespace weft {

const HubTarget& weft_target();

}  // namespace weft
