#include "checkpoints/safetensors/index.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "autograd/check.h"
#include "checkpoints/safetensors/header.h"
#include "data/storage/json.h"
#include "data/storage/text.h"

namespace weft {

namespace {

bool is_bare_name(std::string_view name) {
  const bool has_bad_byte = std::any_of(name.begin(), name.end(), [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return c == '/' || c == '\\' || c == ':' || byte < 0x20 || byte == 0x7f;
  });
  return !name.empty() && name.size() <= 255 && name[0] != '.' && !has_bad_byte;
}

}  // namespace

std::map<std::string, std::string> parse_safetensors_index(std::string_view json, std::string_view source) {
  const nlohmann::json root = parse_strict(json, source, kMaxIndexFileBytes);
  if (root.is_object() && root.contains("metadata")) require_object(root, "metadata", source);
  const nlohmann::json& weight_map = require_object(root, "weight_map", source);
  if (weight_map.empty()) storage_error("{}: weight_map is empty", source);
  if (weight_map.size() > kMaxSafetensorsTensors) {
    storage_error("{}: weight_map has {} tensors, at most {} are expected", source, weight_map.size(),
                  kMaxSafetensorsTensors);
  }
  std::map<std::string, std::string> files;
  for (const auto& member : weight_map.items()) {
    const std::string& tensor = member.key();
    const nlohmann::json& value = member.value();
    const auto refuse = [&](std::string_view problem) {
      storage_error("{}: weight_map, tensor \"{}\": {}", source, printable(tensor), problem);
    };
    if (const std::string problem = tensor_name_problem(tensor); !problem.empty()) refuse(problem);
    if (!value.is_string()) refuse(fmt::format("expected a file name, found {}", value.type_name()));
    const auto& file = value.get_ref<const std::string&>();
    if (!is_bare_name(file)) {
      refuse(fmt::format("\"{}\" is no bare name of a file in the model's folder", printable(file)));
    }
    if (!file.ends_with(".safetensors")) {
      refuse(fmt::format("\"{}\" is no .safetensors file, and weft opens no other weights", printable(file)));
    }
    files.emplace_hint(files.end(), tensor, file);
  }
  return files;
}

std::string format_safetensors_index(const std::map<std::string, std::string>& weight_map, std::uint64_t total_bytes) {
  return canonical({{"metadata", {{"total_size", total_bytes}}}, {"weight_map", weight_map}}) + "\n";
}

}  // namespace weft
