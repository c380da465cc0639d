#include "data/tokenizers/stream_decoder.h"

#include "data/storage/utf8.h"

namespace weft {

std::string StreamDecoder::push(std::int32_t id) {
  tokenizer_.decode_token(id, first_, held_);
  if (!tokenizer_.is_special(id)) first_ = false;
  const std::size_t tail = incomplete_utf8_tail(held_);
  std::string text = repair_utf8(std::string_view(held_).substr(0, held_.size() - tail));
  held_.erase(0, held_.size() - tail);
  return text;
}

std::string StreamDecoder::finish() {
  std::string text = repair_utf8(held_);
  held_.clear();
  first_ = true;
  return text;
}

}  // namespace weft
