#include "data/storage/utf8.h"

#include <cstdint>
#include <cstring>

namespace weft {

namespace {

struct Sequence {
  std::size_t length = 0;  // bytes of the well-formed sequence, or of the maximal ill-formed part
  bool valid = false;
};

// The sequence at the start of [p, end); its first byte is not ASCII.
Sequence sequence_at(const unsigned char* p, const unsigned char* end) {
  const unsigned lead = *p;
  std::size_t length = 0;
  unsigned low = 0x80;  // bounds of the second byte
  unsigned high = 0xBF;
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  } else {
    return {1, false};
  }
  for (std::size_t i = 1; i < length; ++i) {
    if (p + i == end || p[i] < low || p[i] > high) return {i, false};
    low = 0x80;
    high = 0xBF;
  }
  return {length, true};
}

const unsigned char* skip_ascii(const unsigned char* p, const unsigned char* end) {
  constexpr std::uint64_t kHighBits = 0x8080808080808080ull;
  while (end - p >= 32) {
    std::uint64_t words[4];
    std::memcpy(words, p, 32);
    if (((words[0] | words[1] | words[2] | words[3]) & kHighBits) != 0) break;
    p += 32;
  }
  while (p != end && *p < 0x80) ++p;
  return p;
}

}  // namespace

std::size_t valid_utf8_prefix(std::string_view text) {
  const auto* const begin = reinterpret_cast<const unsigned char*>(text.data());
  const auto* const end = begin + text.size();
  const unsigned char* p = begin;
  for (;;) {
    p = skip_ascii(p, end);
    // Text in other scripts comes in runs too: stay here until the next ASCII byte.
    while (p != end && *p >= 0x80) {
      const Sequence sequence = sequence_at(p, end);
      if (!sequence.valid) return static_cast<std::size_t>(p - begin);
      p += sequence.length;
    }
    if (p == end) return text.size();
  }
}

std::string repair_utf8(std::string_view text) {
  std::string repaired;
  repaired.reserve(text.size() + 16);
  while (true) {
    const std::size_t valid = valid_utf8_prefix(text);
    repaired += text.substr(0, valid);
    if (valid == text.size()) return repaired;
    const auto* p = reinterpret_cast<const unsigned char*>(text.data()) + valid;
    const Sequence bad = sequence_at(p, reinterpret_cast<const unsigned char*>(text.data()) + text.size());
    repaired += "\xEF\xBF\xBD";
    text.remove_prefix(valid + bad.length);
  }
}

std::size_t incomplete_utf8_tail(std::string_view text) {
  const auto* const begin = reinterpret_cast<const unsigned char*>(text.data());
  const auto* const end = begin + text.size();
  for (std::size_t tail = 1; tail <= 3 && tail <= text.size(); ++tail) {
    const unsigned lead = end[-static_cast<std::ptrdiff_t>(tail)];
    if (lead < 0x80) return 0;
    if (lead < 0xC2) continue;
    const std::size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 1;
    const Sequence sequence = sequence_at(end - tail, end);
    return !sequence.valid && sequence.length == tail && tail < length ? tail : 0;
  }
  return 0;
}

void append_utf8(char32_t code_point, std::string& text) {
  const auto byte = [&](std::uint32_t value) { text += static_cast<char>(value); };
  const std::uint32_t c = code_point;
  if (c < 0x80) {
    byte(c);
  } else if (c < 0x800) {
    byte(0xC0 | (c >> 6));
    byte(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    byte(0xE0 | (c >> 12));
    byte(0x80 | ((c >> 6) & 0x3F));
    byte(0x80 | (c & 0x3F));
  } else {
    byte(0xF0 | (c >> 18));
    byte(0x80 | ((c >> 12) & 0x3F));
    byte(0x80 | ((c >> 6) & 0x3F));
    byte(0x80 | (c & 0x3F));
  }
}

}  // namespace weft
