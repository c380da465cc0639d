// Loads an exported directory in transformers and compares it with weft: `weft export --verify python`.
#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "data/tokenizers/tokenizer.h"
#include "modules/language_model.h"

namespace weft {

// Error (config) if there is no such interpreter or it lacks torch, transformers or safetensors. `python`: a path or a
// name that PATH finds. To be called before anything is written.
void require_python(const std::string& python);

// `model` has been rounded to the directory's files; `python` is one that require_python accepts. Runs the check
// that the binary carries (tests/remote_code/check.py) on logits, greedy text and, with a tokenizer, ids of the model,
// and returns its figures. Each of weft and the check compares for about `seconds`. Error (storage) if the check fails,
// with what failed, or if it compared no logits, no greedy text or no ids; these need packages for a tokenizer.model,
// and a figure says which lack.
nlohmann::json check_in_python(LanguageModel& model, const Tokenizer* tokenizer, const std::filesystem::path& directory,
                               const std::string& python, double seconds);

}  // namespace weft
