// The byte tokenizer: id b is byte b, id 256 ends a document. It has no parameters and can encode any input.
#pragma once

#include "data/tokenizers/tokenizer.h"

namespace weft {

class ByteTokenizer final : public Tokenizer {
 public:
  static constexpr std::int32_t kEos = 256;
  static constexpr std::int32_t kVocabSize = 257;

  using Tokenizer::encode;
  std::string name() const override { return "byte"; }
  std::int64_t vocab_size() const override { return kVocabSize; }
  std::int64_t bos_id() const override { return -1; }
  std::int64_t eos_id() const override { return kEos; }
  // Of a text of one byte.
  std::int64_t token_id(std::string_view content) const override;
  bool is_special(std::int32_t id) const override { return id == kEos; }
  void encode(std::string_view text, std::vector<std::int32_t>& ids) const override;
  void encode(std::string_view text, std::vector<std::uint16_t>& ids) const override;
  // No text spells the one special token, and there is no template: every mode gives the same.
  std::vector<std::int32_t> encode(std::string_view text, EncodeMode mode) const override;
  std::string decode(std::span<const std::int32_t> ids) const override;
  void decode_token(std::int32_t id, bool first, std::string& bytes) const override;
  int text_bytes(std::int32_t id) const override { return id >= 0 && id < kEos ? 1 : 0; }
  Sha256::Digest fingerprint() const override;
};

}  // namespace weft
