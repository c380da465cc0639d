#include "checkpoints/huggingface/remote_code.h"

#include <algorithm>
#include <cctype>
#include <set>
#include <vector>

#include "autograd/check.h"

namespace weft {
namespace {

constexpr std::string_view kMixers = "weft_mixers.py";

// Files that a text imports by lines "from .NAME import ...".
std::vector<std::string> imports(std::string_view text) {
  constexpr std::string_view kFrom = "from .";
  std::vector<std::string> names;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = text.substr(begin, end - begin);
    begin = end + 1;
    if (!line.starts_with(kFrom)) continue;
    const std::string_view rest = line.substr(kFrom.size());
    names.push_back(std::string(rest.substr(0, rest.find(' '))) + ".py");
  }
  return names;
}

std::string mixers_file(const std::set<std::string>& mixers) {
  std::string text = "\"\"\"The mixers of this model.\"\"\"\n\n";
  for (const std::string& mixer : mixers) {
    text += fmt::format("from .weft_{} import {}\n", mixer, python_class_of_mixer(mixer));
  }
  text += "\nMIXERS = {\n";
  for (const std::string& mixer : mixers) text += fmt::format("    \"{}\": {},\n", mixer, python_class_of_mixer(mixer));
  return text + "}\n";
}

}  // namespace

const EmbeddedFile* find_embedded_file(std::string_view name) {
  const std::span<const EmbeddedFile> files = embedded_files();
  const auto it = std::ranges::find(files, name, &EmbeddedFile::name);
  return it == files.end() ? nullptr : &*it;
}

std::string python_file_of_mixer(const std::string& mixer) {
  return fmt::format("weft_{}.py", mixer);
}

std::string python_class_of_mixer(const std::string& mixer) {
  std::string name;
  bool first = true;  // of a word
  for (const char c : mixer) {
    if (c == '_') {
      first = true;
      continue;
    }
    name += first ? static_cast<char>(std::toupper(static_cast<unsigned char>(c))) : c;
    first = false;
  }
  return name;
}

std::map<std::string, std::string> remote_code(const LanguageModelConfig& model) {
  std::set<std::string> mixers;
  for (const MixerChoice& choice : model.pattern) mixers.insert(choice.type->name);
  std::map<std::string, std::string> files{{std::string(kMixers), mixers_file(mixers)}};
  std::vector<std::string> open{"configuration_weft.py", "modeling_weft.py", std::string(kMixers)};
  while (!open.empty()) {
    const std::string name = std::move(open.back());
    open.pop_back();
    if (name != kMixers) {
      if (files.contains(name)) continue;
      const EmbeddedFile* file = find_embedded_file(name);
      WEFT_CHECK(file != nullptr, "no Python file {}", name);
      files[name] = file->text;
    }
    for (std::string& next : imports(files[name])) {
      if (next != kMixers) open.push_back(std::move(next));
    }
  }
  return files;
}

}  // namespace weft
