// Validation and repair of UTF-8 (Unicode standard, table 3-7: no surrogates, no overlong forms).
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace weft {

// Bytes of the longest valid prefix; text.size() if all of it is valid. Runs of ASCII take 32 bytes a step.
std::size_t valid_utf8_prefix(std::string_view text);

// Each maximal ill-formed part becomes one U+FFFD, as in the Unicode standard's recommended practice.
std::string repair_utf8(std::string_view text);

// Bytes at the end of the text that may be the beginning of a character: 0 to 3.
std::size_t incomplete_utf8_tail(std::string_view text);

// Appends the UTF-8 form of a code point that is no surrogate.
void append_utf8(char32_t code_point, std::string& text);

}  // namespace weft
