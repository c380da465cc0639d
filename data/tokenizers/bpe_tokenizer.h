// A byte-pair tokenizer with everything around it: added tokens, normalizer, pre-tokenizer, decoder.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "data/tokenizers/added_tokens.h"
#include "data/tokenizers/bpe.h"
#include "data/tokenizers/normalizer.h"
#include "data/tokenizers/pre_tokenizer.h"
#include "data/tokenizers/token_decoder.h"
#include "data/tokenizers/tokenizer.h"

namespace weft {

// What a tokenizer.json says.
struct BpeDefinition {
  std::vector<AddedToken> added;  // by id in the order of the file
  std::vector<NormalizerStep> normalizer;
  std::vector<PreTokenizerStep> pre_tokenizer;
  BpeRules rules;
  std::vector<std::string> tokens;  // by id, as they are spelled in the file; empty: none, or only an added token
  std::vector<Merge> merges;        // by rank
  TokenDecoder decoder;
  std::vector<std::int32_t> prefix;  // ids that the template of one text puts in front
  std::vector<std::int32_t> suffix;  // and at its end
  std::int64_t bos = -1;
  std::int64_t eos = -1;
  std::string source;       // what errors call the file
  std::string file;         // the text it was read from
  std::string description;  // canonical JSON of all of the above that decides ids, except tokens and merges
};

class BpeTokenizer final : public Tokenizer {
 public:
  explicit BpeTokenizer(BpeDefinition definition);
  ~BpeTokenizer() override;

  std::string name() const override { return "tokenizer.json"; }
  std::string_view file() const override { return file_; }
  std::int64_t vocab_size() const override { return vocab_size_; }
  std::int64_t bos_id() const override { return bos_; }
  std::int64_t eos_id() const override { return eos_; }
  std::int64_t token_id(std::string_view content) const override;
  bool is_special(std::int32_t id) const override;
  using Tokenizer::encode;
  void encode(std::string_view text, std::vector<std::int32_t>& ids) const override;
  void encode(std::string_view text, std::vector<std::uint16_t>& ids) const override;
  std::vector<std::int32_t> encode(std::string_view text, EncodeMode mode) const override;
  std::string decode(std::span<const std::int32_t> ids) const override;
  void decode_token(std::int32_t id, bool first, std::string& bytes) const override;
  int text_bytes(std::int32_t id) const override;
  Sha256::Digest fingerprint() const override { return fingerprint_; }

 private:
  struct Scratch;
  class Lease;
  // Scratches that are not in use. Threads begin to look at different places, so that they find their own again.
  static constexpr std::size_t kIdleScratches = 64;

  void append_ids(std::string_view text, bool special_tokens, Scratch& scratch, std::vector<std::int32_t>& ids) const;
  const AddedToken* added_token(std::int32_t id) const;

  std::int64_t vocab_size_ = 0;
  std::vector<AddedToken> added_;
  std::unordered_map<std::int32_t, std::size_t> added_of_id_;
  AddedTokenMatcher raw_added_;         // found in the text as it is
  AddedTokenMatcher normalized_added_;  // found in normalised text
  std::vector<NormalizerStep> normalizer_;
  PreTokenizer pre_tokenizer_;
  Bpe bpe_;
  TokenDecoder decoder_;
  std::vector<std::int32_t> prefix_;
  std::vector<std::int32_t> suffix_;
  std::int64_t bos_ = -1;
  std::int64_t eos_ = -1;
  std::string file_;
  Sha256::Digest fingerprint_{};
  mutable std::array<std::atomic<Scratch*>, kIdleScratches> idle_{};
};

}  // namespace weft
