// What tokenizers ask about a character, for every code point of Unicode 16.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace weft {

namespace detail {
// Made by tools/unicode-classes.
extern const std::uint32_t kUnicodeClassRuns[];
extern const std::size_t kUnicodeClassRunCount;
}  // namespace detail

enum class CharClass : std::uint8_t { other, letter, number, space };  // \p{L}, \p{N}, \s; the rest

// One character of valid UTF-8.
struct Utf8Char {
  std::uint32_t code_point = 0;
  std::uint32_t bytes = 0;
};

// `p` is at the first byte of a character of valid UTF-8.
inline Utf8Char utf8_char_at(const char* p) {
  const auto byte = [p](int i) { return static_cast<std::uint32_t>(static_cast<unsigned char>(p[i])); };
  const std::uint32_t lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  if (lead < 0xE0) return {(lead & 0x1F) << 6 | (byte(1) & 0x3F), 2};
  if (lead < 0xF0) return {(lead & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F), 3};
  return {(lead & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F), 4};
}

// A table of two levels, about 60 kB.
class UnicodeClasses {
 public:
  static const UnicodeClasses& get();

  CharClass char_class(std::uint32_t code_point) const { return static_cast<CharClass>(bits(code_point) & 3); }
  // \w: alphabetic, mark, decimal number, connector, joiner.
  bool word(std::uint32_t code_point) const { return (bits(code_point) & 4) != 0; }
  // Whether normalisation to this form, by the rules of Unicode 9 as `tokenizers` has them, may change, move, or join
  // to its predecessor such a character. Text without them is normalised.
  bool may_change_in_nfc(std::uint32_t code_point) const { return (bits(code_point) & 8) != 0; }
  bool may_change_in_nfkc(std::uint32_t code_point) const { return (bits(code_point) & 16) != 0; }

 private:
  static constexpr std::uint32_t kBlock = 128;

  UnicodeClasses();
  std::uint8_t bits(std::uint32_t code_point) const {
    return blocks_[static_cast<std::size_t>(index_[code_point / kBlock]) * kBlock + code_point % kBlock];
  }

  std::array<std::uint16_t, 0x110000 / kBlock> index_;
  std::vector<std::uint8_t> blocks_;
};

}  // namespace weft
