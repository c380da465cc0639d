#include "data/tokenizers/scanners.h"

namespace weft {

namespace {

// The class and length of a character; `end` itself has length 0.
struct Seen {
  CharClass kind = CharClass::other;
  std::uint32_t bytes = 0;
};

constexpr std::array<CharClass, 128> ascii_classes() {
  std::array<CharClass, 128> classes{};
  for (int c = 0; c < 128; ++c) {
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    const bool number = c >= '0' && c <= '9';
    const bool space = c == ' ' || (c >= '\t' && c <= '\r');
    classes[static_cast<std::size_t>(c)] = letter   ? CharClass::letter
                                           : number ? CharClass::number
                                           : space  ? CharClass::space
                                                    : CharClass::other;
  }
  return classes;
}
constexpr std::array<CharClass, 128> kAscii = ascii_classes();

Seen look(const char* p, const char* end, const UnicodeClasses& classes) {
  if (p == end) return {};
  const auto byte = static_cast<unsigned char>(*p);
  if (byte < 0x80) return {kAscii[byte], 1};
  const Utf8Char c = utf8_char_at(p);
  return {classes.char_class(c.code_point), c.bytes};
}

const char* skip(CharClass kind, const char* p, const char* end, const UnicodeClasses& classes) {
  for (;;) {
    const Seen seen = look(p, end, classes);
    if (seen.bytes == 0 || seen.kind != kind) return p;
    p += seen.bytes;
  }
}

// \s+(?!\S)|\s+ at white space: the run without its last character, which goes to what follows, unless that is the end
// of the text or the run is that one character.
const char* skip_space(const char* p, const char* end, const UnicodeClasses& classes) {
  const char* last = p;
  const char* at = p;
  for (Seen seen = look(at, end, classes); seen.bytes > 0 && seen.kind == CharClass::space;
       seen = look(at, end, classes)) {
    last = at;
    at += seen.bytes;
  }
  return at == end || last == p ? at : last;
}

char lower(char c) {
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
}

// Bytes of 's, 't, 're, 've, 'm, 'll, 'd at an apostrophe, 0 if it is none of them.
std::size_t contraction(const char* p, const char* end) {
  if (end - p < 2) return 0;
  const char c = p[1];
  if (c == 's' || c == 't' || c == 'm' || c == 'd') return 2;
  if (end - p < 3) return 0;
  return (c == 'r' && p[2] == 'e') || (c == 'v' && p[2] == 'e') || (c == 'l' && p[2] == 'l') ? 3 : 0;
}

// The same in either case. The long s U+017F is an s in another case.
std::size_t contraction_any_case(const char* p, const char* end) {
  if (end - p < 2) return 0;
  const char c = lower(p[1]);
  if (c == 's' || c == 't' || c == 'm' || c == 'd') return 2;
  if (end - p < 3) return 0;
  if (p[1] == '\xC5' && p[2] == '\xBF') return 3;
  const char d = lower(p[2]);
  return (c == 'r' && d == 'e') || (c == 'v' && d == 'e') || (c == 'l' && d == 'l') ? 3 : 0;
}

bool line_break(char c) {
  return c == '\r' || c == '\n';
}

// Llama 3 and Qwen 2 differ in how many digits stay together.
template <int kMaxDigits>
const char* scan_cased(const char* p, const char* end, const UnicodeClasses& classes) {
  const Seen first = look(p, end, classes);
  if (first.kind == CharClass::letter) return skip(CharClass::letter, p + first.bytes, end, classes);
  if (first.kind == CharClass::number) {
    p += first.bytes;
    for (int digits = 1; digits < kMaxDigits; ++digits) {
      const Seen next = look(p, end, classes);
      if (next.kind != CharClass::number) break;
      p += next.bytes;
    }
    return p;
  }
  if (*p == '\'') {
    if (const std::size_t bytes = contraction_any_case(p, end)) return p + bytes;
  }
  const char* const rest = p + first.bytes;
  const Seen next = look(rest, end, classes);
  if (next.kind == CharClass::letter && !line_break(*p)) {
    return skip(CharClass::letter, rest + next.bytes, end, classes);
  }
  if (first.kind == CharClass::other || (*p == ' ' && next.bytes > 0 && next.kind == CharClass::other)) {
    p = skip(CharClass::other, rest, end, classes);
    while (p != end && line_break(*p)) ++p;
    return p;
  }
  // White space: up to its last line break, if it has one.
  const char* const run_end = skip(CharClass::space, rest, end, classes);
  for (const char* at = run_end; at != p; --at) {
    if (line_break(at[-1])) return at;
  }
  return skip_space(p, end, classes);
}

}  // namespace

const char* scan_gpt2(const char* p, const char* end, const UnicodeClasses& classes) {
  if (*p == '\'') {
    if (const std::size_t bytes = contraction(p, end)) return p + bytes;
  }
  const char* const word = p + (*p == ' ' ? 1 : 0);
  const Seen seen = look(word, end, classes);
  if (seen.bytes == 0 || seen.kind == CharClass::space) return skip_space(p, end, classes);
  return skip(seen.kind, word + seen.bytes, end, classes);
}

const char* scan_llama3(const char* p, const char* end, const UnicodeClasses& classes) {
  return scan_cased<3>(p, end, classes);
}

const char* scan_qwen2(const char* p, const char* end, const UnicodeClasses& classes) {
  return scan_cased<1>(p, end, classes);
}

Scanner scanner_of(std::string_view pattern) {
  if (pattern == kGpt2Pattern) return scan_gpt2;
  if (pattern == kLlama3Pattern) return scan_llama3;
  if (pattern == kQwen2Pattern) return scan_qwen2;
  return nullptr;
}

}  // namespace weft
