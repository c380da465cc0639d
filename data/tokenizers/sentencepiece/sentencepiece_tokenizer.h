// tokenizer.model: encoding by the sentencepiece library, decoding and everything around it by weft.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "data/tokenizers/sentencepiece/model_file.h"
#include "data/tokenizers/tokenizer.h"

namespace sentencepiece {
class SentencePieceProcessor;
}

namespace weft {

class SentencePieceTokenizer final : public Tokenizer {
 public:
  // The tokenizer of a tokenizer.model's bytes. Errors as of parse_sentencepiece_model.
  SentencePieceTokenizer(std::string file, const std::string& source, const BoundaryIds& ids);
  ~SentencePieceTokenizer() override;

  using Tokenizer::encode;
  std::string name() const override { return "tokenizer.model"; }
  std::string_view file() const override { return file_; }
  std::int64_t vocab_size() const override { return static_cast<std::int64_t>(model_.pieces.size()); }
  std::int64_t bos_id() const override { return bos_id_; }
  std::int64_t eos_id() const override { return eos_id_; }
  std::int64_t token_id(std::string_view content) const override;
  bool is_special(std::int32_t id) const override;
  void encode(std::string_view text, std::vector<std::int32_t>& ids) const override;
  void encode(std::string_view text, std::vector<std::uint16_t>& ids) const override;
  // A prompt begins with BOS, if there is one and it is to be there. Text behind a special token gets no dummy prefix.
  std::vector<std::int32_t> encode(std::string_view text, EncodeMode mode) const override;
  std::string decode(std::span<const std::int32_t> ids) const override;
  void decode_token(std::int32_t id, bool first, std::string& bytes) const override;
  // Counts the space that the dummy prefix puts in front of a document.
  int text_bytes(std::int32_t id) const override;
  Sha256::Digest fingerprint() const override { return fingerprint_; }

 private:
  using Processor = sentencepiece::SentencePieceProcessor;
  struct ControlMatch {
    std::size_t at = 0, bytes = 0;
    std::int32_t id = -1;
  };

  const SentencePiece& piece(std::int32_t id) const;
  bool can_cut_at_spaces() const;
  void encode_valid(std::string_view text, const Processor& processor, std::vector<std::int32_t>& ids) const;
  void encode_part(std::string_view text, const Processor& processor, std::vector<std::int32_t>& ids) const;
  ControlMatch next_control(std::string_view text, std::size_t from) const;

  std::string file_;
  SentencePieceModel model_;
  std::int64_t bos_id_ = -1, eos_id_ = -1;
  bool bos_in_prompts_ = true;
  Sha256::Digest fingerprint_{};
  std::unordered_map<std::string_view, std::int32_t> ids_;
  std::size_t longest_control_ = 0;
  bool cuts_at_spaces_ = false;
  std::unique_ptr<Processor> processor_;
  std::unique_ptr<Processor> processor_behind_;  // without dummy prefix; null if the model has none anyway
};

}  // namespace weft
