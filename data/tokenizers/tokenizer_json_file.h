// Writes a tokenizer.json: the one place that knows how the file is laid out. What goes in is said by
// byte_level_file.h and sentencepiece/tokenizer_json_of.h.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace weft {

struct VocabularyToken {
  std::int64_t id = 0;
  std::string content;  // as the file spells it
};

struct AddedEntry {
  std::int64_t id = 0;
  std::string content;
  bool special = true;
  bool normalized = false;  // found in text that the normalizer has been over
};

// Parts of the file as JSON.
struct TokenizerJsonParts {
  std::vector<AddedEntry> added = {};
  std::string normalizer = "null";
  std::string pre_tokenizer = "null";
  std::string post_processor = "null";
  std::string decoder = "null";
  std::string model;
};
// The same parts give the same text.
std::string tokenizer_json(const TokenizerJsonParts& parts);

struct BpeModelPart {
  std::string unknown = {};  // the token of what has none; empty: there is no such token
  bool fuse_unknown = false;
  bool byte_fallback = false;
  bool ignore_merges = false;
  std::vector<VocabularyToken> tokens = {};
  std::vector<std::string> merges = {};  // by rank, "left right"
};
std::string json_of(const BpeModelPart& model);

// Every id has a piece.
struct UnigramModelPart {
  struct Piece {
    std::string content;
    double score = 0;
  };
  std::int64_t unknown_id = 0;
  bool byte_fallback = false;
  std::vector<Piece> pieces = {};
};
std::string json_of(const UnigramModelPart& model);

// The post-processor that puts tokens in front of every text.
std::string begin_with(std::span<const VocabularyToken> tokens);

}  // namespace weft
