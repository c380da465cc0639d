// The Python files that an exported model of the type `weft` brings along. They are part of the binary.
#pragma once

#include <map>
#include <span>
#include <string>
#include <string_view>

#include "modules/language_model.h"

namespace weft {

struct EmbeddedFile {
  std::string_view name;  // bare, e.g. "weft_kda.py"
  std::string_view text;
};

// All of them. Generated (cmake/EmbedFiles.cmake).
std::span<const EmbeddedFile> embedded_files();
// nullptr if there is none.
const EmbeddedFile* find_embedded_file(std::string_view name);

// "weft_kda.py" and "Kda".
std::string python_file_of_mixer(const std::string& mixer);
std::string python_class_of_mixer(const std::string& mixer);

// The files that a model needs, name -> text: configuration, model, its mixers' and what these import; and
// weft_mixers.py, which names the mixers. Every mixer must have its file.
std::map<std::string, std::string> remote_code(const LanguageModelConfig& model);

}  // namespace weft
