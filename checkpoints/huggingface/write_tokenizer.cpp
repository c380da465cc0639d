#include "checkpoints/huggingface/write_tokenizer.h"

#include <nlohmann/json.hpp>
#include <optional>

#include "autograd/check.h"
#include "data/storage/file.h"
#include "data/storage/text.h"
#include "data/tokenizers/byte_alphabet.h"
#include "data/tokenizers/byte_level_file.h"
#include "data/tokenizers/byte_tokenizer.h"
#include "data/tokenizers/sentencepiece/tokenizer_json_of.h"

namespace weft {
namespace fs = std::filesystem;
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kDescription = "tokenizer_config.json";
constexpr const char* kEndOfDocument = "<|endoftext|>";

// BPE without merges: every byte is a token.
std::string byte_tokenizer_json() {
  ByteLevelVocabulary vocabulary{.style = WordStyle::uncut,
                                 .added = {{.id = ByteTokenizer::kEos, .content = kEndOfDocument}}};
  for (std::int32_t byte = 0; byte < 256; ++byte) {
    vocabulary.tokens.push_back({byte, spell_bytes(std::string(1, static_cast<char>(byte)))});
  }
  return write_tokenizer_json(vocabulary);
}

// How the tokenizer's file spells a token.
std::optional<std::string> content_of(const Tokenizer& tokenizer, std::int64_t id) {
  if (id < 0) return std::nullopt;
  if (tokenizer.name() == "byte") return kEndOfDocument;
  for (const char* usual : {"</s>", "<s>", kEndOfDocument, "<|im_end|>", "<|end_of_text|>", "<|begin_of_text|>",
                            "<|eot_id|>", "<|im_start|>", "<eos>", "<bos>", "<unk>", "<pad>"}) {
    if (tokenizer.token_id(usual) == id) return usual;
  }
  if (tokenizer.name() != "tokenizer.json") return std::nullopt;
  const Json file = Json::parse(tokenizer.file());
  for (const Json& token : file.value("added_tokens", Json::array())) {
    if (token.at("id") == id) return token.at("content").get<std::string>();
  }
  for (const auto& [content, of] : file.at("model").at("vocab").items()) {
    if (of == id) return content;
  }
  return std::nullopt;
}

void write_json(const fs::path& path, const Json& json) {
  write_file_atomically(path, json.dump(2) + "\n");
}

// tokenizer_config.json, but for the Python that it may name: users of an export are told to trust the code in it.
std::string without_code(const TokenizerFile& file) {
  Json config = Json::parse(file.content);
  return config.is_object() && config.erase("auto_map") > 0 ? config.dump(2) + "\n" : file.content;
}

// tokenizer_config.json of a tokenizer.model that has a tokenizer.json: what `given`, the model's own, says of a
// tokenizer that is read from a file, the rest being in that file. Throws Obstacle for tokens that are no pieces.
class ModelDescription {
 public:
  ModelDescription(const Json& given, const SentencePieceModel& model) : given_(given), model_(model) {}

  struct Obstacle {
    std::string text;
  };

  Json run(const Tokenizer& tokenizer, bool begins) {
    for (const char* key : {"chat_template", "model_max_length", "padding_side", "truncation_side"}) {
      if (const auto found = given_.find(key); found != given_.end()) config_[key] = *found;
    }
    // The ids that weft itself goes by.
    name("bos_token", tokenizer.bos_id());
    name("eos_token", tokenizer.eos_id());
    for (const char* key : {"unk_token", "pad_token"}) {
      if (const auto content = content_of(key)) name(key, tokenizer.token_id(*content), *content);
    }
    check_added_tokens(tokenizer);
    config_["add_bos_token"] = begins;
    config_["add_eos_token"] = false;
    config_["clean_up_tokenization_spaces"] = false;
    config_["legacy"] = false;
    config_["tokenizer_class"] = "PreTrainedTokenizerFast";
    return config_;
  }

 private:
  static std::optional<std::string> content_of(const Json& token) {
    if (token.is_string()) return token.get<std::string>();
    if (token.is_object() && token.contains("content") && token["content"].is_string()) {
      return token["content"].get<std::string>();
    }
    return std::nullopt;
  }
  std::optional<std::string> content_of(const char* key) const {
    const auto found = given_.find(key);
    return found == given_.end() ? std::nullopt : content_of(*found);
  }

  // transformers finds what is named in texts, so that it has to be a piece that weft finds there, too.
  void name(const char* key, std::int64_t id, const std::string& content = "") {
    if (id < 0 && content.empty()) return;
    if (id < 0) throw Obstacle{fmt::format("its {} \"{}\" is none of its pieces", key, printable(content))};
    const SentencePiece& piece = model_.pieces.at(static_cast<std::size_t>(id));
    const bool is_named_unknown = piece.type == PieceType::unknown && content_of("unk_token") == piece.text;
    if (piece.type != PieceType::control && !is_named_unknown) {
      throw Obstacle{fmt::format("its {} \"{}\" is no control piece", key, printable(piece.text))};
    }
    config_[key] = piece.text;
  }

  void check_added_tokens(const Tokenizer& tokenizer) const {
    const auto added = given_.find("added_tokens_decoder");
    if (added == given_.end() || !added->is_object()) return;
    for (const auto& [id, token] : added->items()) {
      const auto content = content_of(token);
      if (content && fmt::format("{}", tokenizer.token_id(*content)) == id) continue;
      throw Obstacle{
          fmt::format("its token {} (\"{}\") is none of its pieces", printable(id), printable(content.value_or("")))};
    }
  }

  const Json& given_;
  const SentencePieceModel& model_;
  Json config_ = Json::object();
};

// The files of a tokenizer.model that transformers is to take as they are; false, with the reason in `obstacle`, where
// there can be none.
bool write_model_as_json(const TokenizerBundle& bundle, std::int64_t max_positions, const fs::path& folder,
                         std::string& obstacle) {
  const Tokenizer& tokenizer = *bundle.tokenizer;
  Json given = Json::object();
  for (const TokenizerFile& file : bundle.files) {
    if (file.name == kDescription) given = Json::parse(file.content);
  }
  const SentencePieceModel model = parse_sentencepiece_model(tokenizer.file(), tokenizer.name());
  const TokenizerJsonChoices choices = tokenizer_json_choices(tokenizer, given);
  Json config;
  try {
    config = ModelDescription(given, model).run(tokenizer, choices.begin >= 0);
  } catch (const ModelDescription::Obstacle& found) {
    obstacle = found.text;
    return false;
  }
  const SentencePieceJson written = tokenizer_json_of(model, choices);
  obstacle = written.obstacle;
  if (!obstacle.empty()) return false;
  if (!config.contains("model_max_length") && max_positions > 0) config["model_max_length"] = max_positions;
  Json special = Json::object();
  for (const char* key : {"bos_token", "eos_token", "unk_token", "pad_token"}) {
    if (config.contains(key)) special[key] = config[key];
  }
  write_file_atomically(folder / "tokenizer.json", written.text);
  write_json(folder / "special_tokens_map.json", special);
  write_json(folder / kDescription, config);
  return true;
}

}  // namespace

std::string write_tokenizer(const TokenizerBundle& bundle, std::int64_t max_positions, const fs::path& folder) {
  const Tokenizer& tokenizer = *bundle.tokenizer;
  std::string obstacle;
  for (const TokenizerFile& file : bundle.files) {
    if (file.name == "generation_config.json") continue;
    write_file_atomically(folder / file.name, file.name == kDescription ? without_code(file) : file.content);
  }
  if (tokenizer.name() == "tokenizer.model" && write_model_as_json(bundle, max_positions, folder, obstacle)) return {};
  if (tokenizer.name() == "byte") write_file_atomically(folder / "tokenizer.json", byte_tokenizer_json());
  Json special = Json::object();
  if (const auto bos = content_of(tokenizer, tokenizer.bos_id())) special["bos_token"] = *bos;
  if (const auto eos = content_of(tokenizer, tokenizer.eos_id())) special["eos_token"] = *eos;
  const fs::path map = folder / "special_tokens_map.json", description = folder / kDescription;
  if (!fs::exists(map)) write_json(map, special);
  if (fs::exists(description)) return obstacle;
  Json config = special;
  config["clean_up_tokenization_spaces"] = false;
  if (max_positions > 0) config["model_max_length"] = max_positions;
  // A tokenizer.model alone is read by a class of its own.
  config["tokenizer_class"] = tokenizer.name() == "tokenizer.model" ? "LlamaTokenizer" : "PreTrainedTokenizerFast";
  write_json(description, config);
  return obstacle;
}

}  // namespace weft
