#include "data/tokenizers/tokenizer_json_file.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <string_view>

namespace weft {
namespace {

using Json = nlohmann::ordered_json;

// By hand where there may be many entries: an ordered_json of them would take quadratic time.
template <class Entries, class Spell>
std::string lines_of(const Entries& entries, const Spell& spell) {
  std::string text;
  for (const auto& entry : entries) {
    if (!text.empty()) text += ",\n";
    text += spell(entry);
  }
  return text;
}

}  // namespace

std::string tokenizer_json(const TokenizerJsonParts& parts) {
  Json added = Json::array();
  for (const AddedEntry& token : parts.added) {
    added.push_back({{"id", token.id},
                     {"content", token.content},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", token.normalized},
                     {"special", token.special}});
  }
  return fmt::format(
      "{{\n\"version\":\"1.0\",\n\"truncation\":null,\n\"padding\":null,\n\"added_tokens\":{},\n\"normalizer\":{},\n"
      "\"pre_tokenizer\":{},\n\"post_processor\":{},\n\"decoder\":{},\n\"model\":{{\n{}}}\n}}\n",
      added.dump(), parts.normalizer, parts.pre_tokenizer, parts.post_processor, parts.decoder, parts.model);
}

std::string json_of(const BpeModelPart& model) {
  return fmt::format(
      "\"type\":\"BPE\",\n\"dropout\":null,\n\"unk_token\":{},\n\"continuing_subword_prefix\":null,\n"
      "\"end_of_word_suffix\":null,\n\"fuse_unk\":{},\n\"byte_fallback\":{},\n\"ignore_merges\":{},\n"
      "\"vocab\":{{\n{}}},\n\"merges\":[\n{}]\n",
      model.unknown.empty() ? "null" : Json(model.unknown).dump(), model.fuse_unknown, model.byte_fallback,
      model.ignore_merges,
      lines_of(model.tokens,
               [](const VocabularyToken& token) { return fmt::format("{}:{}", Json(token.content).dump(), token.id); }),
      lines_of(model.merges, [](const std::string& merge) { return Json(merge).dump(); }));
}

std::string json_of(const UnigramModelPart& model) {
  return fmt::format("\"type\":\"Unigram\",\n\"unk_id\":{},\n\"byte_fallback\":{},\n\"vocab\":[\n{}]\n",
                     model.unknown_id, model.byte_fallback,
                     lines_of(model.pieces, [](const UnigramModelPart::Piece& piece) {
                       return fmt::format("[{},{}]", Json(piece.content).dump(), Json(piece.score).dump());
                     }));
}

std::string begin_with(std::span<const VocabularyToken> begin) {
  Json single = Json::array(), pair = Json::array(), tokens = Json::object();
  const auto append = [&](Json& to, int type_id) {
    for (const VocabularyToken& token : begin) {
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
  return frame.dump();
}

}  // namespace weft
