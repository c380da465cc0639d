#include <nlohmann/json.hpp>
#include <unordered_set>

#include "autograd/check.h"
#include "checkpoints/gguf/model.h"
#include "data/storage/text.h"
#include "data/tokenizers/byte_level_file.h"
#include "data/tokenizers/sentencepiece/model_file.h"

namespace weft {

namespace {

// Values of tokenizer.ggml.token_type.
enum class TokenType : std::int64_t { normal = 1, unknown, control, user_defined, unused, byte };

struct PreTokenizer {
  WordStyle style = WordStyle::gpt2;
  bool ignore_merges = false;
  bool adds_bos = false;  // where the file does not say
};

PreTokenizer pre_tokenizer(const std::string& name, std::string_view source) {
  if (name == "gpt-2") return {.style = WordStyle::gpt2};
  if (name == "smollm") return {.style = WordStyle::smollm};
  if (name == "llama-bpe") return {.style = WordStyle::llama3, .ignore_merges = true, .adds_bos = true};
  if (name == "qwen2") return {.style = WordStyle::qwen2};
  storage_error("{}: pre-tokenizer \"{}\" is not supported; gpt-2, smollm, llama-bpe and qwen2 are", source,
                printable(name));
}

// tokenizer.ggml.token_type, or nothing.
std::vector<TokenType> token_types(const GgufMetadata& metadata, std::size_t tokens) {
  std::vector<TokenType> types;
  const auto* found = metadata.find<std::vector<std::int64_t>>("tokenizer.ggml.token_type");
  if (found == nullptr) return types;
  if (found->size() != tokens) {
    storage_error("{}: tokenizer.ggml.token_type has {} values for {} tokens", metadata.source(), found->size(),
                  tokens);
  }
  for (std::size_t id = 0; id < tokens; ++id) {
    const std::int64_t type = (*found)[id];
    if (type < 1 || type > 6) {
      storage_error("{}: tokenizer.ggml.token_type[{}] is {}, 1 to 6 are expected", metadata.source(), id, type);
    }
    types.push_back(static_cast<TokenType>(type));
  }
  return types;
}

// The key's token. Error (storage) if there is no such key, or no such token.
std::int64_t token_of(const GgufMetadata& metadata, std::string_view key, std::size_t tokens) {
  const auto id = metadata.require<std::int64_t>(key);
  if (id < 0 || id >= static_cast<std::int64_t>(tokens)) {
    storage_error("{}: {} is {}, there are {} tokens", metadata.source(), key, id, tokens);
  }
  return id;
}

bool flag_or(const GgufMetadata& metadata, std::string_view key, bool fallback) {
  const bool* found = metadata.find<bool>(key);
  return found == nullptr ? fallback : *found;
}

void refuse_if_true(const GgufMetadata& metadata, std::string_view key) {
  if (flag_or(metadata, key, false)) {
    storage_error("{}: key \"{}\" is true, which is not supported", metadata.source(), key);
  }
}

// A merge of two tokens that are there into a third.
bool is_merge(std::string_view merge, const std::unordered_set<std::string_view>& tokens) {
  const std::size_t space = merge.find(' ');
  if (space == merge.npos || merge.find(' ', space + 1) != merge.npos) return false;
  const std::string_view left = merge.substr(0, space), right = merge.substr(space + 1);
  return tokens.contains(left) && tokens.contains(right) && tokens.contains(std::string(left).append(right));
}

// tokenizer.json of a byte-level vocabulary.
std::string byte_level_file(const GgufMetadata& metadata) {
  refuse_if_true(metadata, "tokenizer.ggml.add_eos_token");
  refuse_if_true(metadata, "tokenizer.ggml.add_space_prefix");
  const std::string_view source = metadata.source();
  const PreTokenizer pre = pre_tokenizer(metadata.require<std::string>("tokenizer.ggml.pre"), source);
  const auto& tokens = metadata.require<std::vector<std::string>>("tokenizer.ggml.tokens");
  const std::vector<TokenType> types = token_types(metadata, tokens.size());
  ByteLevelVocabulary vocabulary{.style = pre.style,
                                 .merges = metadata.require<std::vector<std::string>>("tokenizer.ggml.merges"),
                                 .ignore_merges = pre.ignore_merges};
  std::unordered_set<std::string_view> known;
  for (std::size_t id = 0; id < tokens.size(); ++id) {
    const TokenType type = types.empty() ? TokenType::normal : types[id];
    // Rows that only fill the embedding up.
    if (type == TokenType::unused) continue;
    if (!known.insert(tokens[id]).second) {
      storage_error("{}: tokenizer.ggml.tokens[{}]: \"{}\" is there twice", source, id, printable(tokens[id]));
    }
    const auto number = static_cast<std::int64_t>(id);
    vocabulary.tokens.push_back({number, tokens[id]});
    if (type != TokenType::control && type != TokenType::user_defined) continue;
    vocabulary.added.push_back({.id = number, .content = tokens[id], .special = type == TokenType::control});
  }
  for (std::size_t rank = 0; rank < vocabulary.merges.size(); ++rank) {
    if (is_merge(vocabulary.merges[rank], known)) continue;
    storage_error("{}: tokenizer.ggml.merges[{}]: \"{}\" is no pair of tokens that make a third", source, rank,
                  printable(vocabulary.merges[rank]));
  }
  if (flag_or(metadata, "tokenizer.ggml.add_bos_token", pre.adds_bos)) {
    const std::int64_t bos = token_of(metadata, "tokenizer.ggml.bos_token_id", tokens.size());
    vocabulary.begin.push_back({.id = bos, .content = tokens[static_cast<std::size_t>(bos)]});
  }
  return write_tokenizer_json(vocabulary);
}

// tokenizer.model and tokenizer_config.json of a sentencepiece vocabulary, whose merges follow from the scores. GGUF
// files of this kind have no rules of normalisation.
std::vector<TokenizerFile> sentencepiece_files(const GgufMetadata& metadata) {
  refuse_if_true(metadata, "tokenizer.ggml.add_eos_token");
  const auto* charsmap = metadata.find<std::vector<std::int64_t>>("tokenizer.ggml.precompiled_charsmap");
  if (charsmap != nullptr && !charsmap->empty()) {
    storage_error("{}: tokenizer.ggml.precompiled_charsmap is not supported with the tokenizer \"llama\"",
                  metadata.source());
  }
  const auto& tokens = metadata.require<std::vector<std::string>>("tokenizer.ggml.tokens");
  // Before pieces take memory, of which each takes several times its bytes in the file.
  if (tokens.size() > kMaxSentencePieces) {
    storage_error("{}: tokenizer.ggml.tokens: more than {} pieces", metadata.source(), kMaxSentencePieces);
  }
  const auto& scores = metadata.require<std::vector<double>>("tokenizer.ggml.scores");
  metadata.require<std::vector<std::int64_t>>("tokenizer.ggml.token_type");
  const std::vector<TokenType> types = token_types(metadata, tokens.size());
  if (scores.size() != tokens.size()) {
    storage_error("{}: tokenizer.ggml.scores has {} values for {} tokens", metadata.source(), scores.size(),
                  tokens.size());
  }
  SentencePieceModel model;
  model.algorithm = SentencePieceModel::Algorithm::bpe;
  SentencePieceIds ids;
  for (std::size_t id = 0; id < tokens.size(); ++id) {
    if (tokens[id].empty()) storage_error("{}: piece {} is empty", metadata.source(), id);
    model.pieces.push_back(
        {.text = tokens[id], .score = static_cast<float>(scores[id]), .type = static_cast<PieceType>(types[id])});
    if (types[id] == TokenType::byte) model.byte_fallback = true;
    if (types[id] == TokenType::unknown) {
      ids.unknown = static_cast<std::int64_t>(id);
      model.unknown_piece = tokens[id];
    }
  }
  const auto boundary = [&](const char* key, std::int64_t& id, std::string& piece) {
    if (!metadata.contains(key)) return;
    id = token_of(metadata, key, tokens.size());
    piece = tokens[static_cast<std::size_t>(id)];
  };
  boundary("tokenizer.ggml.bos_token_id", ids.bos, model.bos_piece);
  boundary("tokenizer.ggml.eos_token_id", ids.eos, model.eos_piece);
  boundary("tokenizer.ggml.padding_token_id", ids.pad, model.pad_piece);
  model.remove_extra_spaces = flag_or(metadata, "tokenizer.ggml.remove_extra_whitespaces", false);
  model.dummy_prefix = flag_or(metadata, "tokenizer.ggml.add_space_prefix", true);
  const std::string file = serialize_with_ids(model, ids);
  parse_sentencepiece_model(file, metadata.source());  // refuses what could harm the library

  nlohmann::json config = {{"tokenizer_class", "LlamaTokenizer"},
                           {"add_bos_token", flag_or(metadata, "tokenizer.ggml.add_bos_token", true)},
                           {"add_eos_token", false},
                           {"clean_up_tokenization_spaces", false},
                           {"unk_token", model.unknown_piece}};
  if (ids.bos >= 0) config["bos_token"] = model.bos_piece;
  if (ids.eos >= 0) config["eos_token"] = model.eos_piece;
  if (ids.pad >= 0) config["pad_token"] = model.pad_piece;
  return {{.name = "tokenizer.model", .content = file},
          {.name = "tokenizer_config.json", .content = config.dump(2) + "\n"}};
}

}  // namespace

std::vector<TokenizerFile> gguf_tokenizer_files(const GgufFile& file) {
  const GgufMetadata& metadata = file.metadata();
  const std::string& model = metadata.require<std::string>("tokenizer.ggml.model");
  if (model == "gpt2") return {{.name = "tokenizer.json", .content = byte_level_file(metadata)}};
  if (model == "llama") return sentencepiece_files(metadata);
  storage_error("{}: tokenizer \"{}\" is not supported; gpt2 (byte-level BPE) and llama (sentencepiece) are",
                file.path().string(), printable(model));
}

}  // namespace weft
