// The parts of tokenizer.json around the model. Each reader appends to the definition and to its description, and
// refuses by name what weft does not do: Error (storage).
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "data/tokenizers/bpe_tokenizer.h"

namespace weft {

// How errors call a part: file and place in it, e.g. "tokenizer.json, pre_tokenizer.pretokenizers[1]".
struct JsonPlace {
  std::string file;
  std::string path;

  std::string text() const { return file + ", " + path; }
  JsonPlace member(const std::string& key) const { return {file, path + "." + key}; }
  JsonPlace element(const std::string& key, std::size_t index) const {
    return {file, path + "." + key + "[" + std::to_string(index) + "]"};
  }
};

// `part` may be null, which is no step. The return value is a canonical description of the steps.
nlohmann::json read_normalizer(const nlohmann::json& part, const JsonPlace& place, BpeDefinition& definition);
nlohmann::json read_pre_tokenizer(const nlohmann::json& part, const JsonPlace& place, BpeDefinition& definition);
// After the pre-tokenizer, which it has to suit.
void read_decoder(const nlohmann::json& part, const JsonPlace& place, BpeDefinition& definition);
// The template goes to prefix and suffix.
void read_post_processor(const nlohmann::json& part, const JsonPlace& place, BpeDefinition& definition);

// Optional members: `fallback` if missing or null.
bool bool_or(const nlohmann::json& object, const char* key, bool fallback, const JsonPlace& place);
std::string string_or(const nlohmann::json& object, const char* key, const std::string& fallback,
                      const JsonPlace& place);

}  // namespace weft
