// A sentencepiece model as a tokenizer.json, for libraries that do not read tokenizer.model, or not to the same ids.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "data/tokenizers/sentencepiece/model_file.h"
#include "data/tokenizers/tokenizer.h"

namespace weft {

struct TokenizerJsonChoices {
  std::int64_t begin = -1;  // the id that prompts begin with, -1: none
  bool unknown_is_special =
      false;  // what spells the unknown piece is that piece, as transformers has it if it is named
};

struct SentencePieceJson {
  std::string text;      // empty if there is an obstacle
  std::string obstacle;  // what of the model no tokenizer.json can say, in a few words
};

// Those of a folder: what its tokenizer puts in front of prompts, and whether its tokenizer_config.json (an object;
// null: there is none) names the unknown piece.
TokenizerJsonChoices tokenizer_json_choices(const Tokenizer& tokenizer, const nlohmann::json& tokenizer_config);

// A file that gives the ids and texts of SentencePieceTokenizer in the package `tokenizers`, control pieces being found
// in texts as in prompts (EncodeMode::prompt). Exceptions: a text that is nothing but a user-defined piece of a BPE
// model loses its dummy prefix; and the library adds up a unigram model's scores in single precision, `tokenizers` in
// double, so that of two equally good ways to cut a text each may take another. Decoding drops one space at the
// beginning, where sentencepiece, without extra spaces, drops that of every piece, but not of the unknown one. The same
// model and choices give the same text.
SentencePieceJson tokenizer_json_of(const SentencePieceModel& model, const TokenizerJsonChoices& choices);

}  // namespace weft
