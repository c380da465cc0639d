#include "data/prepare/jsonl.h"

#include <cstdint>
#include <cstring>

#include "data/storage/utf8.h"

namespace weft {

namespace {

constexpr int kMaxDepth = 64;

bool is_space(char c) {
  return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}
bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

// True where a byte of `word` is '"', '\\' or below 0x20 (exact enough to stop at: a hit is looked at byte by byte).
bool has_string_stop(std::uint64_t word) {
  constexpr std::uint64_t kOnes = 0x0101010101010101ull;
  constexpr std::uint64_t kHighBits = 0x8080808080808080ull;
  const std::uint64_t quote = word ^ (kOnes * '"');
  const std::uint64_t backslash = word ^ (kOnes * '\\');
  const std::uint64_t stops =
      ((quote - kOnes) & ~quote) | ((backslash - kOnes) & ~backslash) | ((word - kOnes * 0x20) & ~word);
  return (stops & kHighBits) != 0;
}

class Scanner {
 public:
  Scanner(std::string_view line, std::string_view field, std::string& scratch)
      : begin_(line.data()), p_(line.data()), end_(line.data() + line.size()), field_(field), scratch_(scratch) {}

  LineText run() {
    skip_space();
    if (!expect('{', "expected an object")) return bad();
    if (!object()) return bad();
    skip_space();
    if (p_ != end_) {
      fail("expected nothing after the object");
      return bad();
    }
    if (!found_) return {LineStatus::no_text, {}, 0, "the member is missing or no string"};
    return {LineStatus::ok, text_, 0, ""};
  }

 private:
  bool fail(const char* problem, LineStatus status = LineStatus::invalid_json) {
    problem_ = problem;
    status_ = status;
    return false;
  }
  LineText bad() const { return {status_, {}, static_cast<std::size_t>(p_ - begin_), problem_}; }

  void skip_space() {
    while (p_ != end_ && is_space(*p_)) ++p_;
  }
  bool expect(char c, const char* problem) {
    if (p_ == end_ || *p_ != c) return fail(problem);
    ++p_;
    return true;
  }

  // Members of the outermost object, after its brace.
  bool object() {
    skip_space();
    if (p_ != end_ && *p_ == '}') {
      ++p_;
      return true;
    }
    for (;;) {
      skip_space();
      std::string_view key;
      if (!string(&key, key_scratch_)) return false;
      const bool wanted = key == field_;
      if (!colon()) return false;
      if (wanted) {
        if (seen_) return fail("the text member appears twice");
        seen_ = true;
      }
      if (wanted && p_ != end_ && *p_ == '"') {
        if (!string(&text_, scratch_)) return false;
        found_ = true;
      } else if (!value()) {
        return false;
      }
      skip_space();
      if (p_ != end_ && *p_ == ',') {
        ++p_;
        continue;
      }
      return expect('}', "expected ',' or '}'");
    }
  }

  bool colon() {
    skip_space();
    if (!expect(':', "expected ':'")) return false;
    skip_space();
    return true;
  }

  // Any value, without recursion: `open` holds the closing bracket of each open container.
  bool value() {
    char open[kMaxDepth];
    int depth = 0;
    for (;;) {
      skip_space();
      if (p_ == end_) return fail("expected a value");
      if (*p_ == '{' || *p_ == '[') {
        // The outermost object is a level of its own.
        if (depth == kMaxDepth - 1) return fail("nesting deeper than 64");
        const char close = *p_ == '{' ? '}' : ']';
        ++p_;
        skip_space();
        if (p_ != end_ && *p_ == close) {
          ++p_;
        } else {
          open[depth++] = close;
          if (close == '}' && !key()) return false;
          continue;
        }
      } else if (!scalar()) {
        return false;
      }
      for (;;) {  // after a value: close containers until one goes on
        if (depth == 0) return true;
        skip_space();
        if (p_ != end_ && *p_ == ',') {
          ++p_;
          skip_space();
          if (open[depth - 1] == '}' && !key()) return false;
          break;
        }
        if (!expect(open[depth - 1], open[depth - 1] == '}' ? "expected ',' or '}'" : "expected ',' or ']'"))
          return false;
        --depth;
      }
    }
  }

  bool key() { return string(nullptr, key_scratch_) && colon(); }

  bool scalar() {
    switch (*p_) {
      case '"':
        return string(nullptr, key_scratch_);
      case 't':
        return literal("true");
      case 'f':
        return literal("false");
      case 'n':
        return literal("null");
      default:
        return number();
    }
  }

  bool literal(std::string_view word) {
    if (std::string_view(p_, static_cast<std::size_t>(end_ - p_)).substr(0, word.size()) != word) {
      return fail("expected a value");
    }
    p_ += word.size();
    return true;
  }

  bool digits() {
    if (p_ == end_ || !is_digit(*p_)) return fail("expected a digit");
    while (p_ != end_ && is_digit(*p_)) ++p_;
    return true;
  }

  bool number() {
    if (*p_ != '-' && !is_digit(*p_)) return fail("expected a value");
    if (*p_ == '-') ++p_;
    if (p_ != end_ && *p_ == '0') {
      ++p_;
    } else if (!digits()) {
      return false;
    }
    if (p_ != end_ && *p_ == '.') {
      ++p_;
      if (!digits()) return false;
    }
    if (p_ != end_ && (*p_ == 'e' || *p_ == 'E')) {
      ++p_;
      if (p_ != end_ && (*p_ == '+' || *p_ == '-')) ++p_;
      return digits();
    }
    return true;
  }

  // A string; with `text`, its content, decoded into `scratch` only if it has escapes.
  bool string(std::string_view* text, std::string& scratch) {
    if (!expect('"', "expected a string")) return false;
    const char* run = p_;
    bool decoded = false;
    for (;;) {
      while (end_ - p_ >= 8) {
        std::uint64_t word = 0;
        std::memcpy(&word, p_, 8);
        if (has_string_stop(word)) break;
        p_ += 8;
      }
      while (p_ != end_ && *p_ != '"' && *p_ != '\\' && static_cast<unsigned char>(*p_) >= 0x20) ++p_;
      if (p_ == end_) return fail("the string does not end");
      if (static_cast<unsigned char>(*p_) < 0x20) return fail("a control character in a string");
      const std::string_view piece(run, static_cast<std::size_t>(p_ - run));
      if (*p_ == '"') {
        ++p_;
        if (text == nullptr) return true;
        if (decoded) {
          scratch += piece;
          *text = scratch;
        } else {
          *text = piece;
        }
        return true;
      }
      if (!decoded) scratch.clear();
      decoded = true;
      if (text != nullptr) scratch += piece;
      if (!escape(text != nullptr, scratch)) return false;
      run = p_;
    }
  }

  bool escape(bool keep, std::string& scratch) {
    const char* const start = p_++;
    if (p_ == end_) return fail("the string does not end");
    constexpr std::string_view kNames = "\"\\/bfnrt";
    constexpr std::string_view kValues = "\"\\/\b\f\n\r\t";
    if (const auto i = kNames.find(*p_); i != kNames.npos) {
      ++p_;
      if (keep) scratch += kValues[i];
      return true;
    }
    if (*p_ != 'u') return fail("an unknown escape");
    ++p_;
    std::uint32_t unit = 0;
    if (!hex4(unit)) return false;
    if (unit >= 0xD800 && unit < 0xDC00) {
      std::uint32_t low = 0;
      const bool pair = end_ - p_ >= 2 && p_[0] == '\\' && p_[1] == 'u';
      if (pair) {
        p_ += 2;
        if (!hex4(low)) return false;
      }
      if (low < 0xDC00 || low >= 0xE000) {
        p_ = start;
        return fail("a surrogate without its other half", LineStatus::lone_surrogate);
      }
      unit = 0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00);
    } else if (unit >= 0xDC00 && unit < 0xE000) {
      p_ = start;
      return fail("a surrogate without its other half", LineStatus::lone_surrogate);
    }
    if (keep) append_utf8(static_cast<char32_t>(unit), scratch);
    return true;
  }

  bool hex4(std::uint32_t& unit) {
    for (int i = 0; i < 4; ++i, ++p_) {
      if (p_ == end_) return fail("the string does not end");
      const char c = *p_;
      std::uint32_t digit = 0;
      if (is_digit(c)) {
        digit = static_cast<std::uint32_t>(c - '0');
      } else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f') {
        digit = static_cast<std::uint32_t>((c | 0x20) - 'a' + 10);
      } else {
        return fail("expected four hexadecimal digits");
      }
      unit = unit << 4 | digit;
    }
    return true;
  }

  const char* begin_;
  const char* p_;
  const char* end_;
  std::string_view field_;
  std::string& scratch_;
  std::string key_scratch_;
  std::string_view text_;
  bool seen_ = false;
  bool found_ = false;
  const char* problem_ = "";
  LineStatus status_ = LineStatus::invalid_json;
};

}  // namespace

LineText extract_text(std::string_view line, std::string_view field, std::string& scratch) {
  return Scanner(line, field, scratch).run();
}

}  // namespace weft
