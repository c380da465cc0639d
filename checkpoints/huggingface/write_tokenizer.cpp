#include "checkpoints/huggingface/write_tokenizer.h"

#include <nlohmann/json.hpp>
#include <optional>

#include "data/storage/file.h"
#include "data/tokenizers/byte_alphabet.h"
#include "data/tokenizers/byte_level_file.h"
#include "data/tokenizers/byte_tokenizer.h"

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

}  // namespace

void write_tokenizer(const TokenizerBundle& bundle, std::int64_t max_positions, const fs::path& folder) {
  const Tokenizer& tokenizer = *bundle.tokenizer;
  for (const TokenizerFile& file : bundle.files) {
    if (file.name == "generation_config.json") continue;
    write_file_atomically(folder / file.name, file.name == kDescription ? without_code(file) : file.content);
  }
  if (tokenizer.name() == "byte") write_file_atomically(folder / "tokenizer.json", byte_tokenizer_json());
  Json special = Json::object();
  if (const auto bos = content_of(tokenizer, tokenizer.bos_id())) special["bos_token"] = *bos;
  if (const auto eos = content_of(tokenizer, tokenizer.eos_id())) special["eos_token"] = *eos;
  const fs::path map = folder / "special_tokens_map.json", description = folder / kDescription;
  if (!fs::exists(map)) write_json(map, special);
  if (fs::exists(description)) return;
  Json config = special;
  config["clean_up_tokenization_spaces"] = false;
  if (max_positions > 0) config["model_max_length"] = max_positions;
  // A tokenizer.model is read by a class of its own.
  config["tokenizer_class"] = tokenizer.name() == "tokenizer.model" ? "LlamaTokenizer" : "PreTrainedTokenizerFast";
  write_json(description, config);
}

}  // namespace weft
