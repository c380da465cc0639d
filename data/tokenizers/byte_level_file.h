// The tokenizer.json of a byte-level BPE vocabulary.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/tokenizers/tokenizer_json_file.h"

namespace weft {

// How text is cut into words; no token crosses from one into the next. The names are those of the models whose way it
// is.
enum class WordStyle : std::uint8_t {
  uncut,
  gpt2,    // as GPT-2
  smollm,  // as gpt2, with single digits
  llama3,  // letters in any case behind an apostrophe, numbers by three digits, line breaks apart
  qwen2,   // as llama3 with single digits, on text in normal form C
};

struct ByteLevelVocabulary {
  WordStyle style = WordStyle::gpt2;
  std::vector<VocabularyToken> tokens = {};
  std::vector<std::string> merges = {};  // by rank, "left right"
  std::vector<AddedEntry> added = {};
  bool ignore_merges = false;               // a word that is a token is that token, whatever the merges say
  std::vector<VocabularyToken> begin = {};  // what every text begins with: BOS, or nothing
};

// The same vocabulary gives the same text.
std::string write_tokenizer_json(const ByteLevelVocabulary& vocabulary);

}  // namespace weft
