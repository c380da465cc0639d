#include "checkpoints/huggingface/remote_code.h"

#include <algorithm>
#include <cctype>
#include <set>
#include <vector>

#include "autograd/check.h"

namespace weft {
namespace {

constexpr std::string_view kMixers = "weft_mixers.py";
constexpr std::string_view kModel = "modeling_weft.py";

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

// Loaders of transformers before 5.23 copy only the files that the model's own one imports, so it names all of them.
void name_all_files(std::map<std::string, std::string>& files) {
  std::string& model = files.at(std::string(kModel));
  const std::vector<std::string> named = imports(model);
  model += "\n# Named here for loaders that copy only what this file imports.\n";
  for (const auto& [name, text] : files) {
    if (name == kModel || std::ranges::find(named, name) != named.end()) continue;
    const std::string module = name.substr(0, name.size() - std::string_view(".py").size());
    model += fmt::format("from .{} import __name__ as _  # noqa: E402, F401\n", module);
  }
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
  std::vector<std::string> open{"configuration_weft.py", std::string(kModel), std::string(kMixers)};
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
  name_all_files(files);
  return files;
}

}  // namespace weft
