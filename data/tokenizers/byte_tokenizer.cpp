#include "data/tokenizers/byte_tokenizer.h"

#include "autograd/check.h"

namespace weft {

namespace {

template <class Id>
void append_bytes(std::string_view text, std::vector<Id>& ids) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(text.data());
  ids.insert(ids.end(), bytes, bytes + text.size());
}

}  // namespace

void ByteTokenizer::encode(std::string_view text, std::vector<std::int32_t>& ids) const {
  append_bytes(text, ids);
}
void ByteTokenizer::encode(std::string_view text, std::vector<std::uint16_t>& ids) const {
  append_bytes(text, ids);
}

std::vector<std::int32_t> ByteTokenizer::encode(std::string_view text, EncodeMode) const {
  std::vector<std::int32_t> ids;
  append_bytes(text, ids);
  return ids;
}

std::int64_t ByteTokenizer::token_id(std::string_view content) const {
  return content.size() == 1 ? static_cast<unsigned char>(content[0]) : -1;
}

void ByteTokenizer::decode_token(std::int32_t id, bool, std::string& bytes) const {
  WEFT_CHECK(id >= 0 && id < kVocabSize, "byte tokenizer: id {} is outside [0, {})", id, kVocabSize);
  if (id != kEos) bytes += static_cast<char>(id);
}

std::string ByteTokenizer::decode(std::span<const std::int32_t> ids) const {
  std::string text;
  text.reserve(ids.size());
  for (const std::int32_t id : ids) decode_token(id, text.empty(), text);
  return text;
}

Sha256::Digest ByteTokenizer::fingerprint() const {
  return sha256(R"({"eos_id":256,"type":"byte","vocab_size":257})");
}

}  // namespace weft
