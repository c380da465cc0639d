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

Json post_processor(const ByteLevelVocabulary& vocabulary) {
  if (vocabulary.style == WordStyle::uncut) return nullptr;
  const Json bytes = byte_level(true, true);
  if (vocabulary.begin.empty()) return bytes;
  Json single = Json::array(), pair = Json::array(), tokens = Json::object();
  const auto append = [&](Json& to, int type_id) {
    for (const ByteLevelVocabulary::Added& token : vocabulary.begin) {
      to.push_back({{"SpecialToken", {{"id", token.content}, {"type_id", type_id}}}});
      tokens[token.content] = {
          {"id", token.content}, {"ids", Json::array({token.id})}, {"tokens", Json::array({token.content})}};
    }
    to.push_back({{"Sequence", {{"id", type_id == 0 ? "A" : "B"}, {"type_id", type_id}}}});
  };
  append(single, 0);
  append(pair, 0);
  append(pair, 1);
  const Json frame = {{"type", "TemplateProcessing"}, {"single", single}, {"pair", pair}, {"special_tokens", tokens}};
  return {{"type", "Sequence"}, {"processors", Json::array({bytes, frame})}};
}

}  // namespace

// By hand where there may be many entries: an ordered_json of them would take quadratic time.
std::string write_tokenizer_json(const ByteLevelVocabulary& vocabulary) {
  Json added = Json::array();
  for (const ByteLevelVocabulary::Added& token : vocabulary.added) {
    added.push_back({{"id", token.id},
                     {"content", token.content},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", token.special}});
  }
  const Json normalizer = vocabulary.style == WordStyle::qwen2 ? Json({{"type", "NFC"}}) : Json(nullptr);
  const Json decoder = byte_level(vocabulary.style != WordStyle::uncut, true);
  std::string text = fmt::format(
      "{{\n\"version\":\"1.0\",\n\"truncation\":null,\n\"padding\":null,\n\"added_tokens\":{},\n\"normalizer\":{},\n"
      "\"pre_tokenizer\":{},\n\"post_processor\":{},\n\"decoder\":{},\n\"model\":{{\n",
      added.dump(), normalizer.dump(), pre_tokenizer(vocabulary.style).dump(), post_processor(vocabulary).dump(),
      decoder.dump());
  text += fmt::format(
      "\"type\":\"BPE\",\n\"dropout\":null,\n\"unk_token\":null,\n\"continuing_subword_prefix\":null,\n"
      "\"end_of_word_suffix\":null,\n\"fuse_unk\":false,\n\"byte_fallback\":false,\n\"ignore_merges\":{},\n"
      "\"vocab\":{{\n",
      vocabulary.ignore_merges);
  std::string_view between = "";
  for (const ByteLevelVocabulary::Token& token : vocabulary.tokens) {
    text += fmt::format("{}{}:{}", between, Json(token.content).dump(), token.id);
    between = ",\n";
  }
  text += "},\n\"merges\":[\n";
  between = "";
  for (const std::string& merge : vocabulary.merges) {
    text += fmt::format("{}{}", between, Json(merge).dump());
    between = ",\n";
  }
  return text + "]\n}\n}\n";
}

}  // namespace weft
