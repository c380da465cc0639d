#include <algorithm>
#include <nlohmann/json.hpp>

#include "autograd/check.h"
#include "data/storage/json.h"
#include "data/storage/text.h"
#include "data/tokenizers/bpe_tokenizer.h"
#include "data/tokenizers/byte_alphabet.h"
#include "data/tokenizers/tokenizer_json_steps.h"

namespace weft {

namespace {

using nlohmann::json;

constexpr std::int64_t kMaxTokens = std::int64_t{1} << 22;
constexpr std::size_t kMaxAddedBytes = AddedTokenMatcher::kMaxContentBytes;

using Vocabulary = std::unordered_map<std::string_view, std::int32_t>;

// Fills definition.tokens. The views are of the JSON's own strings.
Vocabulary read_vocabulary(const json& model, const JsonPlace& place, BpeDefinition& definition) {
  const json& entries = require_object(model, "vocab", place.text());
  const JsonPlace at = place.member("vocab");
  if (entries.empty()) storage_error("{}: no tokens", at.text());
  const auto count = static_cast<std::int64_t>(entries.size());
  // Ids may have gaps, but the table of them must not outgrow the file.
  const std::int64_t bound = std::min(kMaxTokens, 2 * count + 1024);
  Vocabulary ids;
  ids.reserve(entries.size());
  definition.tokens.resize(entries.size());
  std::vector<bool> taken(static_cast<std::size_t>(bound), false);
  for (const auto& [token, value] : entries.items()) {
    if (!value.is_number_integer()) {
      storage_error("{}: the id of \"{}\" is no integer", at.text(), printable(token));
    }
    const auto id = value.get<std::int64_t>();
    if (id < 0 || id >= bound) {
      storage_error("{}: \"{}\" has id {}, expected 0 to {} for {} tokens", at.text(), printable(token), id, bound - 1,
                    count);
    }
    const auto index = static_cast<std::size_t>(id);
    if (taken[index]) storage_error("{}: \"{}\" has id {}, as another token has", at.text(), printable(token), id);
    taken[index] = true;
    if (index >= definition.tokens.size()) definition.tokens.resize(index + 1);
    definition.tokens[index] = token;
    ids.emplace(token, static_cast<std::int32_t>(id));
  }
  return ids;
}

// "left right", or ["left", "right"].
std::pair<std::string_view, std::string_view> merge_pair(const json& entry, const std::string& source) {
  if (entry.is_string()) {
    const std::string_view text = entry.get_ref<const std::string&>();
    const std::size_t space = text.find(' ');
    if (space != std::string_view::npos && text.find(' ', space + 1) == std::string_view::npos) {
      return {text.substr(0, space), text.substr(space + 1)};
    }
  } else if (entry.is_array() && entry.size() == 2 && entry[0].is_string() && entry[1].is_string()) {
    return {entry[0].get_ref<const std::string&>(), entry[1].get_ref<const std::string&>()};
  }
  storage_error("{}: expected two tokens, as \"left right\" or [\"left\", \"right\"]", source);
}

void read_merges(const json& model, const JsonPlace& place, const Vocabulary& vocabulary, BpeDefinition& definition) {
  const json& entries = require_array(model, "merges", place.text());
  constexpr std::size_t kMaxMerges = std::size_t{1} << 23;
  if (entries.size() > kMaxMerges) {
    storage_error("{}: {} merges, at most {} are expected", place.text(), entries.size(), kMaxMerges);
  }
  definition.merges.reserve(entries.size());
  std::string joined;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const auto source = [&] { return place.element("merges", i).text(); };
    // Files made from merges.txt may have kept its first line.
    if (entries[i].is_string() && entries[i].get_ref<const std::string&>().starts_with("#version")) continue;
    const auto [left, right] = merge_pair(entries[i], source());
    joined = left;
    joined += right;
    const auto id_of = [&](std::string_view token) {
      const auto found = vocabulary.find(token);
      if (found == vocabulary.end() || token.empty()) {
        storage_error("{}: \"{}\" is no token of the vocabulary", source(), printable(token));
      }
      return found->second;
    };
    definition.merges.push_back({id_of(left), id_of(right), id_of(joined)});
  }
}

void refuse_affix(const json& model, const char* key, const JsonPlace& place) {
  if (!string_or(model, key, "", place).empty()) {
    storage_error("{}: \"{}\" is not empty; weft reads vocabularies without marks for parts of words", place.text(),
                  key);
  }
}

json read_rules(const json& model, const JsonPlace& place, const Vocabulary& vocabulary, BpeDefinition& definition) {
  const auto dropout = model.find("dropout");
  if (dropout != model.end() && !dropout->is_null() && *dropout != 0) {
    storage_error("{}: \"dropout\" is {}, so that the same text gives different ids; expected null or 0", place.text(),
                  printable(dropout->dump()));
  }
  refuse_affix(model, "continuing_subword_prefix", place);
  refuse_affix(model, "end_of_word_suffix", place);
  BpeRules& rules = definition.rules;
  rules.byte_fallback = bool_or(model, "byte_fallback", false, place);
  rules.fuse_unknown = bool_or(model, "fuse_unk", false, place);
  rules.ignore_merges = bool_or(model, "ignore_merges", false, place);
  const std::string unknown = string_or(model, "unk_token", "", place);
  if (!unknown.empty()) {
    const auto found = vocabulary.find(unknown);
    if (found == vocabulary.end()) {
      storage_error("{}: \"unk_token\" is \"{}\", which is no token of the vocabulary", place.text(),
                    printable(unknown));
    }
    rules.unknown_id = found->second;
  }
  rules.byte_ids.fill(-1);
  for (int byte = 0; byte < 256 && rules.byte_fallback; ++byte) {
    const std::string token = fmt::format("<0x{:02X}>", byte);
    const auto found = vocabulary.find(std::string_view(token));
    if (found != vocabulary.end()) rules.byte_ids[static_cast<std::size_t>(byte)] = found->second;
  }
  return {{"byte_fallback", rules.byte_fallback},
          {"fuse_unk", rules.fuse_unknown},
          {"ignore_merges", rules.ignore_merges},
          {"unk_id", rules.unknown_id}};
}

json read_model(const json& model, const JsonPlace& place, Vocabulary& vocabulary, BpeDefinition& definition) {
  // Old files do not name the type; only a BPE has merges.
  const std::string type = string_or(model, "type", model.contains("merges") ? "BPE" : "of no name", place);
  if (type != "BPE") storage_error("{}: a model {}; weft reads BPE", place.text(), printable(type));
  check_keys(model,
             {"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk",
              "byte_fallback", "ignore_merges", "vocab", "merges"},
             place.text());
  vocabulary = read_vocabulary(model, place, definition);
  read_merges(model, place, vocabulary, definition);
  return read_rules(model, place, vocabulary, definition);
}

json read_added_tokens(const json& root, const std::string& file, const json& vocabulary, BpeDefinition& definition) {
  const auto entries = root.find("added_tokens");
  json recorded = json::array();
  if (entries == root.end() || entries->is_null()) return recorded;
  if (!entries->is_array()) storage_error("{}, added_tokens: expected a list", file);
  // `tokenizers` does not take the ids of the file but counts on: after the vocabulary, or after the last one.
  const auto first_new = static_cast<std::int64_t>(vocabulary.size());
  std::int64_t last = -1;
  std::unordered_map<std::string, std::int64_t> known;
  for (std::size_t i = 0; i < entries->size(); ++i) {
    const JsonPlace place = JsonPlace{file, "added_tokens[" + std::to_string(i) + "]"};
    const json& entry = (*entries)[i];
    check_keys(entry, {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"}, place.text());
    AddedToken token;
    token.content = require_string(entry, "content", place.text());
    if (token.content.empty() || token.content.size() > kMaxAddedBytes) {
      storage_error("{}: a content of {} bytes, expected 1 to {}", place.text(), token.content.size(), kMaxAddedBytes);
    }
    const std::int64_t id = require_int(entry, "id", place.text(), 0, kMaxTokens - 1);
    const auto own = vocabulary.find(token.content);
    const std::int64_t expected = own != vocabulary.end() ? own->get<std::int64_t>() : std::max(first_new, last + 1);
    if (id != expected) {
      storage_error(
          "{}: \"{}\" has id {}, expected {}: {}", place.text(), printable(token.content), id, expected,
          own != vocabulary.end() ? "that of the vocabulary" : "new tokens follow the vocabulary without gaps");
    }
    if (own == vocabulary.end() && id < static_cast<std::int64_t>(definition.tokens.size()) &&
        !definition.tokens[static_cast<std::size_t>(id)].empty()) {
      storage_error("{}: \"{}\" has id {}, which is \"{}\" in the vocabulary", place.text(), printable(token.content),
                    id, printable(definition.tokens[static_cast<std::size_t>(id)]));
    }
    if (!known.emplace(token.content, id).second) {
      storage_error("{}: \"{}\" is there twice", place.text(), printable(token.content));
    }
    last = std::max(last, id);
    token.id = static_cast<std::int32_t>(id);
    token.special = bool_or(entry, "special", false, place);
    token.single_word = bool_or(entry, "single_word", false, place);
    token.lstrip = bool_or(entry, "lstrip", false, place);
    token.rstrip = bool_or(entry, "rstrip", false, place);
    token.normalized = bool_or(entry, "normalized", !token.special, place);
    recorded.push_back(
        {id, token.content, token.special, token.single_word, token.lstrip, token.rstrip, token.normalized});
    definition.added.push_back(std::move(token));
  }
  return recorded;
}

// Rules 3 and 4 of make_tokenizer.
std::int64_t boundary_id(const std::optional<std::int64_t>& given, std::initializer_list<std::string_view> names,
                         const BpeDefinition& definition) {
  if (given) return *given;
  for (const std::string_view name : names) {
    for (const AddedToken& token : definition.added) {
      if (token.special && token.content == name) return token.id;
    }
  }
  return -1;
}

// Of a byte-level vocabulary: a missing byte would become the fallback tokens of its spelling.
void check_bytes(const BpeDefinition& definition, const Vocabulary& vocabulary, const JsonPlace& place) {
  if (!definition.rules.bytes || !definition.rules.byte_fallback) return;
  for (int byte = 0; byte < 256; ++byte) {
    if (vocabulary.contains(spell_bytes(std::string(1, static_cast<char>(byte))))) continue;
    storage_error("{}: byte_fallback in a byte-level vocabulary that lacks the byte 0x{:02X}", place.text(), byte);
  }
}

}  // namespace

std::unique_ptr<Tokenizer> parse_tokenizer_json(std::string text, const std::string& source, const BoundaryIds& ids) {
  const json root = parse_strict(text, source);
  check_keys(root,
             {"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor",
              "decoder", "model"},
             source);
  if (const std::string& version = require_string(root, "version", source); version != "1.0") {
    storage_error("{}: version \"{}\", expected \"1.0\"", source, printable(version));
  }
  const json& model = require_object(root, "model", source);
  const json none;
  const auto part = [&](const char* key) -> const json& {
    const auto found = root.find(key);
    return found == root.end() ? none : *found;
  };
  BpeDefinition definition;
  definition.source = source;
  Vocabulary vocabulary;
  json description;
  description["model"] = read_model(model, {source, "model"}, vocabulary, definition);
  description["added_tokens"] = read_added_tokens(root, source, model["vocab"], definition);
  description["normalizer"] = read_normalizer(part("normalizer"), {source, "normalizer"}, definition);
  description["pre_tokenizer"] = read_pre_tokenizer(part("pre_tokenizer"), {source, "pre_tokenizer"}, definition);
  read_decoder(part("decoder"), {source, "decoder"}, definition);
  read_post_processor(part("post_processor"), {source, "post_processor"}, definition);
  check_bytes(definition, vocabulary, {source, "model"});
  definition.bos = boundary_id(ids.bos, {"<s>", "<|begin_of_text|>", "<bos>"}, definition);
  definition.eos =
      boundary_id(ids.eos, {"<|endoftext|>", "</s>", "<|end_of_text|>", "<|im_end|>", "<eos>"}, definition);
  description["bos_id"] = definition.bos;
  description["eos_id"] = definition.eos;
  description["type"] = "bpe";
  definition.description = canonical(description);
  definition.file = std::move(text);
  return std::make_unique<BpeTokenizer>(std::move(definition));
}

}  // namespace weft
