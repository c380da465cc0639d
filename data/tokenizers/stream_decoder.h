// Text as its tokens are made, in whole characters.
#pragma once

#include <cstdint>
#include <string>

#include "data/tokenizers/tokenizer.h"

namespace weft {

class StreamDecoder {
 public:
  // Keeps a reference.
  explicit StreamDecoder(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  // The characters that this id completes. The first bytes of a character are held back until the rest of it comes,
  // or shows that there is none: then they become U+FFFD.
  std::string push(std::int32_t id);
  // What is still held back, as U+FFFD; the decoder begins anew.
  std::string finish();

 private:
  const Tokenizer& tokenizer_;
  std::string held_;
  bool first_ = true;
};

}  // namespace weft
