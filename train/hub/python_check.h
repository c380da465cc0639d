// Loads an exported directory in transformers and compares it with weft: `weft export --verify python`.
#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "modules/language_model.h"

namespace weft {

// `model` has been rounded to the directory's files. `python`: the interpreter, a path or a name that PATH finds. Runs
// the check that the binary carries (tests/remote_code/check.py) on logits and greedy text of the model, and returns
// its figures. Error (config) if there is no such interpreter or it lacks torch, transformers or safetensors; Error
// (storage) if the check fails, with what failed.
nlohmann::json check_in_python(LanguageModel& model, const std::filesystem::path& directory, const std::string& python);

}  // namespace weft
