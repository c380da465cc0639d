#include "data/tokenizers/byte_level_file.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <string_view>

#include "data/tokenizers/scanners.h"

namespace weft {
namespace {

using Json = nlohmann::ordered_json;

Json byte_level(bool trim_offsets, bool use_regex) {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", trim_offsets}, {"use_regex", use_regex}};
}

Json sequence_of(const Json& first, const Json& second) {
  return {{"type", "Sequence"}, {"pretokenizers", Json::array({first, second})}};
}

// Words by a pattern, then bytes as letters.
Json split_then_bytes(std::string_view pattern) {
  return sequence_of(
      {{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}},
      byte_level(true, false));
}

Json pre_tokenizer(WordStyle style) {
  switch (style) {
    case WordStyle::uncut:
      return byte_level(false, false);
    case WordStyle::gpt2:
      return byte_level(true, true);
    case WordStyle::smollm:
      return sequence_of({{"type", "Digits"}, {"individual_digits", true}}, byte_level(true, true));
    case WordStyle::llama3:
      return split_then_bytes(kLlama3Pattern);
    case WordStyle::qwen2:
      break;
  }
  return split_then_bytes(kQwen2Pattern);
}

std::string post_processor(const ByteLevelVocabulary& vocabulary) {
  if (vocabulary.style == WordStyle::uncut) return "null";
  const std::string bytes = byte_level(true, true).dump();
  if (vocabulary.begin.empty()) return bytes;
  return fmt::format("{{\"type\":\"Sequence\",\"processors\":[{},{}]}}", bytes, begin_with(vocabulary.begin));
}

}  // namespace

std::string write_tokenizer_json(const ByteLevelVocabulary& vocabulary) {
  return tokenizer_json(
      {.added = vocabulary.added,
       .normalizer = vocabulary.style == WordStyle::qwen2 ? R"({"type":"NFC"})" : "null",
       .pre_tokenizer = pre_tokenizer(vocabulary.style).dump(),
       .post_processor = post_processor(vocabulary),
       .decoder = byte_level(vocabulary.style != WordStyle::uncut, true).dump(),
       .model = json_of(BpeModelPart{
           .ignore_merges = vocabulary.ignore_merges, .tokens = vocabulary.tokens, .merges = vocabulary.merges})});
}

}  // namespace weft
