#include "data/tokenizers/byte_alphabet.h"

#include <array>

#include "data/storage/utf8.h"
#include "data/tokenizers/unicode_classes.h"

namespace weft {

namespace {

constexpr std::uint32_t kFirstOther = 0x100;

struct Alphabet {
  std::array<std::uint32_t, 256> of_byte{};
  std::array<int, kFirstOther + 68> to_byte{};
};

Alphabet make_alphabet() {
  Alphabet alphabet;
  alphabet.to_byte.fill(-1);
  std::uint32_t other = kFirstOther;
  for (std::uint32_t b = 0; b < 256; ++b) {
    const bool printable = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
    alphabet.of_byte[b] = printable ? b : other++;
    alphabet.to_byte[alphabet.of_byte[b]] = static_cast<int>(b);
  }
  return alphabet;
}

const Alphabet& alphabet() {
  static const Alphabet made = make_alphabet();
  return made;
}

}  // namespace

std::string spell_bytes(std::string_view bytes) {
  std::string spelling;
  for (const char c : bytes) append_utf8(alphabet().of_byte[static_cast<unsigned char>(c)], spelling);
  return spelling;
}

std::optional<std::string> spelled_bytes(std::string_view spelling) {
  std::string bytes;
  for (std::size_t at = 0; at < spelling.size();) {
    const Utf8Char c = utf8_char_at(spelling.data() + at);
    if (c.code_point >= alphabet().to_byte.size()) return std::nullopt;
    const int byte = alphabet().to_byte[c.code_point];
    if (byte < 0) return std::nullopt;
    bytes += static_cast<char>(byte);
    at += c.bytes;
  }
  return bytes;
}

}  // namespace weft
