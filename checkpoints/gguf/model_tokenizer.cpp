#include <algorithm>
#include <nlohmann/json.hpp>

#include "autograd/check.h"
#include "checkpoints/gguf/model.h"
#include "data/storage/json.h"
#include "data/storage/text.h"

namespace weft {

namespace {

using nlohmann::json;

// Values of tokenizer.ggml.token_type.
enum class TokenType : std::int64_t { normal = 1, unknown, control, user_defined, unused, byte };

json byte_level(bool use_regex) {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", use_regex}};
}

// Pieces by a pattern, then bytes as letters.
json split_then_bytes(std::string_view pattern) {
  return {{"type", "Sequence"},
          {"pretokenizers",
           {{{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}},
            byte_level(false)}}};
}

struct PreTokenizer {
  json pre_tokenizer;
  json normalizer;
  // A piece that is a token as a whole is that token, whatever the merges say.
  bool ignore_merges = false;
  // Where the file does not say.
  bool adds_bos = false;
};

PreTokenizer pre_tokenizer(const std::string& name, std::string_view source) {
  if (name == "gpt-2") return {.pre_tokenizer = byte_level(true), .normalizer = nullptr};
  if (name == "smollm") {
    return {.pre_tokenizer = {{"type", "Sequence"},
                              {"pretokenizers", {{{"type", "Digits"}, {"individual_digits", true}}, byte_level(true)}}},
            .normalizer = nullptr};
  }
  if (name == "llama-bpe") {
    return {.pre_tokenizer = split_then_bytes("(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|"
                                              " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"),
            .normalizer = nullptr,
            .ignore_merges = true,
            .adds_bos = true};
  }
  if (name == "qwen2") {
    return {.pre_tokenizer = split_then_bytes("(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|"
                                              " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"),
            .normalizer = {{"type", "NFC"}}};
  }
  storage_error("{}: pre-tokenizer \"{}\" is not supported; gpt-2, smollm, llama-bpe and qwen2 are", source,
                printable(name));
}

json with_bos(const std::string& token, std::int64_t id) {
  const json bos = {{"SpecialToken", {{"id", token}, {"type_id", 0}}}};
  const json second_bos = {{"SpecialToken", {{"id", token}, {"type_id", 1}}}};
  const auto sequence = [](std::string_view name, int type_id) {
    return json{{"Sequence", {{"id", name}, {"type_id", type_id}}}};
  };
  const json tokens = {{token, {{"id", token}, {"ids", json::array({id})}, {"tokens", json::array({token})}}}};
  return {{"type", "Sequence"},
          {"processors",
           {byte_level(true),
            {{"type", "TemplateProcessing"},
             {"single", json::array({bos, sequence("A", 0)})},
             {"pair", json::array({bos, sequence("A", 0), second_bos, sequence("B", 1)})},
             {"special_tokens", tokens}}}}};
}

}  // namespace

std::string gguf_tokenizer_json(const GgufFile& file) {
  const GgufMetadata& metadata = file.metadata();
  const std::string source = file.path().string();
  const std::string& model = metadata.require<std::string>("tokenizer.ggml.model");
  if (model != "gpt2") {
    storage_error("{}: tokenizer \"{}\" is not supported; gpt2 (byte-level BPE) is", source, printable(model));
  }
  for (const std::string_view option : {"tokenizer.ggml.add_eos_token", "tokenizer.ggml.add_space_prefix"}) {
    const auto* value = metadata.find<bool>(option);
    if (value != nullptr && *value) storage_error("{}: key \"{}\" is true, which is not supported", source, option);
  }
  const PreTokenizer pre = pre_tokenizer(metadata.require<std::string>("tokenizer.ggml.pre"), source);
  const auto& tokens = metadata.require<std::vector<std::string>>("tokenizer.ggml.tokens");
  const auto& merges = metadata.require<std::vector<std::string>>("tokenizer.ggml.merges");
  const auto* types = metadata.find<std::vector<std::int64_t>>("tokenizer.ggml.token_type");
  if (types != nullptr && types->size() != tokens.size()) {
    storage_error("{}: tokenizer.ggml.token_type has {} values for {} tokens", source, types->size(), tokens.size());
  }

  json vocab = json::object();
  json added = json::array();
  for (std::size_t id = 0; id < tokens.size(); ++id) {
    const auto type = types == nullptr ? TokenType::normal : static_cast<TokenType>((*types)[id]);
    // Rows that only fill the embedding up.
    if (type == TokenType::unused) continue;
    if (type < TokenType::normal || type > TokenType::byte) {
      storage_error("{}: tokenizer.ggml.token_type[{}] is {}, 1 to 6 are expected", source, id, (*types)[id]);
    }
    if (!vocab.emplace(tokens[id], id).second) {
      storage_error("{}: tokenizer.ggml.tokens[{}]: \"{}\" is there twice", source, id, printable(tokens[id]));
    }
    if (type != TokenType::control && type != TokenType::user_defined) continue;
    added.push_back({{"id", id},
                     {"content", tokens[id]},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", type == TokenType::control}});
  }
  for (std::size_t rank = 0; rank < merges.size(); ++rank) {
    const std::string& merge = merges[rank];
    const std::size_t space = merge.find(' ');
    const bool is_pair = space != std::string::npos && merge.find(' ', space + 1) == std::string::npos;
    if (!is_pair || !vocab.contains(merge.substr(0, space)) || !vocab.contains(merge.substr(space + 1)) ||
        !vocab.contains(merge.substr(0, space) + merge.substr(space + 1))) {
      storage_error("{}: tokenizer.ggml.merges[{}]: \"{}\" is no pair of tokens that make a third", source, rank,
                    printable(merge));
    }
  }

  const auto* given_bos = metadata.find<bool>("tokenizer.ggml.add_bos_token");
  json post_processor = byte_level(true);
  if (given_bos != nullptr ? *given_bos : pre.adds_bos) {
    const auto bos = metadata.require<std::int64_t>("tokenizer.ggml.bos_token_id");
    if (bos < 0 || bos >= static_cast<std::int64_t>(tokens.size())) {
      storage_error("{}: tokenizer.ggml.bos_token_id is {}, there are {} tokens", source, bos, tokens.size());
    }
    post_processor = with_bos(tokens[static_cast<std::size_t>(bos)], bos);
  }
  const json result = {{"version", "1.0"},
                       {"truncation", nullptr},
                       {"padding", nullptr},
                       {"added_tokens", added},
                       {"normalizer", pre.normalizer},
                       {"pre_tokenizer", pre.pre_tokenizer},
                       {"post_processor", post_processor},
                       {"decoder", byte_level(true)},
                       {"model",
                        {{"type", "BPE"},
                         {"dropout", nullptr},
                         {"unk_token", nullptr},
                         {"continuing_subword_prefix", nullptr},
                         {"end_of_word_suffix", nullptr},
                         {"fuse_unk", false},
                         {"byte_fallback", false},
                         {"ignore_merges", pre.ignore_merges},
                         {"vocab", vocab},
                         {"merges", merges}}}};
  return canonical(result);
}

}  // namespace weft
