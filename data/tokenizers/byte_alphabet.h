// The spelling of bytes in byte-level vocabularies: each of the 256 as one printable character.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace weft {

// 0x21-0x7E, 0xA1-0xAC and 0xAE-0xFF are the character of that number; the other 68 are U+0100, U+0101, ... in order.
std::string spell_bytes(std::string_view bytes);
// The bytes of a spelling (valid UTF-8); nothing if a character spells no byte.
std::optional<std::string> spelled_bytes(std::string_view spelling);

}  // namespace weft
