// A tokenizer on its way: out of a folder into datasets and checkpoints, which keep its files as they are.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizers/tokenizer.h"

namespace weft {

struct TokenizerFile {
  std::string name;  // bare
  std::string content;
};

// A tokenizer and its files: its own, and those beside it that say more of it to transformers (tokenizer_config.json,
// special_tokens_map.json, generation_config.json, chat_template.jinja). None for "byte".
struct TokenizerBundle {
  std::shared_ptr<const Tokenizer> tokenizer;
  std::vector<TokenizerFile> files;
};

// What a dataset or a checkpoint says of its tokenizer.
struct TokenizerIdentity {
  std::string name;
  std::string fingerprint;  // 64 hexadecimal digits; empty where it was not recorded
  std::int64_t bos_id = -1;
  std::int64_t eos_id = -1;
};

TokenizerIdentity identity_of(const Tokenizer& tokenizer);
// For people: the name, and for files the beginning of the fingerprint, since most have the same name.
std::string shown(const TokenizerIdentity& identity);

// make_tokenizer, with the files.
TokenizerBundle open_tokenizer(const std::string& name);

// The tokenizer that `identity` says, made of kept `files`. `where` is the folder that they are from. Error (config) if
// its file is not among them, or gives another fingerprint.
TokenizerBundle restore_tokenizer(const TokenizerIdentity& identity, std::vector<TokenizerFile> files,
                                  const std::string& where);

// The names of the files that a tokenizer may have: those of a bundle, and nothing else.
bool is_tokenizer_file(std::string_view name);

// The ids that end a generated text: EOS and those of generation_config.json, ascending.
std::vector<std::int32_t> stop_ids(const TokenizerBundle& bundle);

}  // namespace weft
