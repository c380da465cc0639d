// The recipe of an imported model: what to fine-tune it with, and the model that its checkpoint is of.
#pragma once

#include <string>

#include "modules/language_model.h"

namespace weft {

struct ImportedRecipe {
  std::string name;       // of a fine-tuning run
  std::string init_from;  // the imported model
  std::string origin;     // where it came from, for a comment
  std::int64_t max_positions = 0;
};

// TOML with comments; parse_recipe reads it back to `model`, whose dataset has still to be named. Options at their
// defaults are left out.
std::string imported_recipe(const LanguageModelConfig& model, const ImportedRecipe& about);

}  // namespace weft
