// The decoders of tokenizer.json: from tokens back to text.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace weft {

// What becomes of each token, in this order. (A decoder that looks at several tokens at once, other than for the bytes
// of a character, is none of ours.)
struct TokenDecoder {
  bool byte_level = false;                                        // tokens are bytes already
  bool byte_fallback = false;                                     // <0xNN> is a byte
  std::vector<std::pair<std::string, std::string>> replacements;  // of literals, in order
  std::string metaspace;                                          // becomes a space; empty: none
  bool metaspace_drops_first = false;                             // but nothing in the first token
  std::string first_strip;                                        // dropped once from the beginning of the text

  // The byte of <0xNN>, if it is one.
  static std::optional<unsigned char> byte_of(std::string_view token);
  // The text (or part of a character) of one token; `first`: no other token comes before it.
  std::string decode(std::string_view token, bool first) const;
};

}  // namespace weft
