// tokenizer.model, read and checked before the sentencepiece library sees any of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace weft {

enum class PieceType : std::uint8_t { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };

struct SentencePiece {
  std::string text;  // spaces as U+2581
  float score = 0;
  PieceType type = PieceType::normal;
};

// The most that a model may have.
constexpr std::size_t kMaxSentencePieces = 2'000'000;

struct SentencePieceModel {
  enum class Algorithm : std::uint8_t { unigram = 1, bpe = 2 };

  std::vector<SentencePiece> pieces;  // by id
  Algorithm algorithm = Algorithm::unigram;
  bool byte_fallback = false;
  bool whitespace_as_suffix = false;
  std::string unknown_surface = " \xE2\x81\x87 ";  // what an unknown piece decodes to
  std::string unknown_piece = "<unk>", bos_piece = "<s>", eos_piece = "</s>", pad_piece = "<pad>";

  std::string charsmap;                 // compiled rules of normalisation; empty: none
  bool charsmap_matches_space = false;  // a rule has a space behind the first byte of what it replaces
  bool dummy_prefix = true;
  bool remove_extra_spaces = true;
  bool escape_spaces = true;
};

// Error (storage) that names `source` and the place for what is no model, what could harm the library (table in
// data/tokenizers/README.md), and for models of words, characters or denormalisation rules.
SentencePieceModel parse_sentencepiece_model(std::string_view file, const std::string& source);

// A protocol-buffer ModelProto of exactly these fields: what the library gets, and what the fingerprint is taken of.
// `dummy_prefix` in place of the model's own.
std::string serialize(const SentencePieceModel& model, bool dummy_prefix);

// -1: none.
struct SentencePieceIds {
  std::int64_t unknown = -1, bos = -1, eos = -1, pad = -1;
};
// The same for a file of its own, which also says the ids: other readers take those of its trainer.
std::string serialize_with_ids(const SentencePieceModel& model, const SentencePieceIds& ids);

// Checks compiled rules of normalisation (a double array and the texts it points to): that looking anything up in them
// stays inside, ends, and finds no more matches at a place than the library has room for. Returns whether a rule
// matches a space behind its first byte.
bool check_charsmap(std::string_view charsmap, const std::string& source);

}  // namespace weft
