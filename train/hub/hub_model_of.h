// What other libraries are to know of a trained model.
#pragma once

#include "checkpoints/huggingface/target.h"
#include "train/loop/run_folder.h"

namespace weft {

// Lengths and special tokens are those of the model that it was imported from, if it was; else the recipe's rows and
// the tokenizer's tokens. Texts end with every token that ends weft's own, those of a generation_config.json included.
HubModel hub_model_of(const LoadedModel& loaded);

}  // namespace weft
