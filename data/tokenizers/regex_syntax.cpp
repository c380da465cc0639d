#include "data/tokenizers/regex_syntax.h"

#include "autograd/check.h"
#include "data/storage/text.h"
#include "data/storage/utf8.h"

namespace weft {

namespace {

// \s of Oniguruma; PCRE2's has U+180E, too.
constexpr std::string_view kSpaces =
    R"(\x{09}-\x{0D}\x{20}\x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})";

bool letter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}
bool digit(char c) {
  return c >= '0' && c <= '9';
}
bool hex_digit(char c) {
  return digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

class Translator {
 public:
  Translator(std::string_view pattern, const std::string& source) : pattern_(pattern), source_(source) {}

  std::string translate() {
    while (at_ < pattern_.size()) {
      const char c = pattern_[at_];
      if (c == '\\') {
        escape(false);
      } else if (c == '[') {
        char_class();
      } else if (c == '(') {
        group();
      } else if (c == '{') {
        counted();
      } else {
        out_ += c;
        ++at_;
      }
    }
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const {
    storage_error("{}: {} at byte {} of the pattern {}: not among the regular expressions that weft runs", source_,
                  what, at_, printable(pattern_));
  }
  std::string_view rest() const { return pattern_.substr(at_); }

  // `in_class`: between square brackets.
  void escape(bool in_class) {
    if (at_ + 1 == pattern_.size()) refuse("a backslash at the end");
    const char c = pattern_[at_ + 1];
    if (c == 's' || (c == 'S' && !in_class)) {
      out_ += in_class ? std::string(kSpaces) : fmt::format("[{}{}]", c == 'S' ? "^" : "", kSpaces);
      at_ += 2;
    } else if (c == 'p' || c == 'P') {
      property();
    } else if (c == 'x' || c == 'u') {
      code_point();
    } else if (c == 'd' || c == 'D' || c == 'r' || c == 'n' || c == 't' || c == 'f') {
      out_ += pattern_.substr(at_, 2);
      at_ += 2;
    } else if (c == 'v') {
      out_ += "\\x{0B}";
      at_ += 2;
    } else if (!letter(c) && !digit(c) && static_cast<unsigned char>(c) >= 0x20 &&
               static_cast<unsigned char>(c) < 0x7F) {
      out_ += pattern_.substr(at_, 2);
      at_ += 2;
    } else {
      refuse(fmt::format("\\{}", printable(pattern_.substr(at_ + 1, 1))));
    }
  }

  void property() {
    const std::size_t close = pattern_.find('}', at_);
    if (at_ + 2 >= pattern_.size() || pattern_[at_ + 2] != '{' || close == std::string_view::npos) {
      refuse("a \\p without {..}");
    }
    std::string_view name = pattern_.substr(at_ + 3, close - at_ - 3);
    const bool inverse = name.starts_with('^');
    if (inverse) name.remove_prefix(1);
    for (const char c : name) {
      if (!letter(c) && c != '_') refuse(fmt::format("\\p{{{}}}", printable(name)));
    }
    if (name.empty()) refuse("\\p{}");
    // A name of one or two letters is a category. PCRE2 would take a script with its extensions, Oniguruma without.
    const std::string_view prefix = name.size() <= 2 ? "" : "sc:";
    out_ += fmt::format("\\{}{{{}{}{}}}", pattern_[at_ + 1], inverse ? "^" : "", prefix, name);
    at_ = close + 1;
  }

  void code_point() {
    std::string_view digits;
    std::size_t next = 0;
    if (pattern_[at_ + 1] == 'x' && at_ + 2 < pattern_.size() && pattern_[at_ + 2] == '{') {
      next = pattern_.find('}', at_);
      if (next == std::string_view::npos) refuse("\\x{ without }");
      digits = pattern_.substr(at_ + 3, next - at_ - 3);
      ++next;
    } else {
      const std::size_t count = pattern_[at_ + 1] == 'x' ? 2 : 4;
      digits = pattern_.substr(at_ + 2, count);
      if (digits.size() != count) refuse(fmt::format("\\{} without {} digits", pattern_[at_ + 1], count));
      next = at_ + 2 + count;
    }
    if (digits.empty() || digits.size() > 6) refuse("a code point without 1 to 6 digits");
    for (const char c : digits) {
      if (!hex_digit(c)) refuse("a code point that is not hexadecimal");
    }
    // To Oniguruma \x80 to \xFF are bytes of a longer character.
    if (pattern_[at_ + 1] == 'x' && pattern_[at_ + 2] != '{' && digits[0] >= '8') refuse("a \\x of a single byte");
    out_ += fmt::format("\\x{{{}}}", digits);
    at_ = next;
  }

  void char_class() {
    out_ += '[';
    ++at_;
    if (rest().starts_with('^')) {
      out_ += '^';
      ++at_;
    }
    if (rest().starts_with(']')) refuse("an empty class");
    for (;;) {
      if (at_ == pattern_.size()) refuse("a class without ]");
      const char c = pattern_[at_];
      if (c == ']') break;
      if (c == '[') refuse("a class within a class");
      if (rest().starts_with("&&")) refuse("an intersection of classes");
      if (c == '\\') {
        escape(true);
      } else {
        out_ += c;
        ++at_;
      }
    }
    out_ += ']';
    ++at_;
  }

  void group() {
    for (const std::string_view start : {"(?:", "(?i:", "(?=", "(?!", "(?<=", "(?<!", "(?>"}) {
      if (!rest().starts_with(start)) continue;
      out_ += start;
      at_ += start.size();
      return;
    }
    if (rest().starts_with("(?") || rest().starts_with("(*")) {
      refuse(fmt::format("the group {}", printable(rest().substr(0, 4))));
    }
    // Groups are not numbered: nothing refers to them.
    out_ += "(?:";
    ++at_;
  }

  // {n}, {n,}, {n,m}, with the lazy mark allowed; other braces are literals that the two take apart differently.
  void counted() {
    std::size_t p = at_ + 1;
    const auto digits = [&] {
      const std::size_t begin = p;
      while (p < pattern_.size() && digit(pattern_[p])) ++p;
      return p > begin;
    };
    bool good = digits();
    if (good && p < pattern_.size() && pattern_[p] == ',') {
      ++p;
      digits();
    }
    good = good && p < pattern_.size() && pattern_[p] == '}';
    if (!good) refuse("a brace that is no quantifier (write \\{)");
    ++p;
    // To Oniguruma {n}? is an optional repetition and {n,m}+ a repeated one, to PCRE2 they are lazy and possessive.
    if (p < pattern_.size() && (pattern_[p] == '+' || pattern_[p] == '?')) refuse("a quantifier after {..}");
    out_ += pattern_.substr(at_, p - at_);
    at_ = p;
  }

  std::string_view pattern_;
  const std::string& source_;
  std::size_t at_ = 0;
  std::string out_;
};

}  // namespace

std::string pcre2_pattern(std::string_view pattern, const std::string& source) {
  constexpr std::size_t kMaxBytes = 16384;
  if (pattern.size() > kMaxBytes) {
    storage_error("{}: a pattern of {} bytes, at most {} are expected", source, pattern.size(), kMaxBytes);
  }
  if (valid_utf8_prefix(pattern) != pattern.size()) storage_error("{}: the pattern is not UTF-8", source);
  return Translator(pattern, source).translate();
}

}  // namespace weft
