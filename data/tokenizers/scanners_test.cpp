// Hand-written scanners against the regular expressions that they stand for, and the expressions' translation.
#include "data/tokenizers/scanners.h"

#include <gtest/gtest.h>

#include "autograd/philox.h"
#include "data/dataset_test_support.h"
#include "data/storage/utf8.h"
#include "data/tokenizers/regex.h"
#include "data/tokenizers/regex_syntax.h"

namespace weft {
namespace {

std::vector<std::string> by_scanner(Scanner scanner, std::string_view text) {
  std::vector<std::string> pieces;
  const char* const end = text.data() + text.size();
  for (const char* p = text.data(); p != end;) {
    const char* const next = scanner(p, end, UnicodeClasses::get());
    pieces.emplace_back(p, next);
    p = next;
  }
  return pieces;
}

std::vector<std::string> by_regex(const Regex& regex, std::string_view text) {
  std::vector<std::string> pieces;
  for (std::size_t from = 0; from < text.size();) {
    const auto match = regex.find(text, from);
    if (!match || match->begin != from || match->end == from) return {"the pattern leaves a gap"};
    pieces.emplace_back(text.substr(from, match->end - from));
    from = match->end;
  }
  return pieces;
}

struct Case {
  const char* name;
  std::string_view pattern;
  Scanner scanner;
};
const Case kCases[] = {
    {"gpt2", kGpt2Pattern, scan_gpt2}, {"llama3", kLlama3Pattern, scan_llama3}, {"qwen2", kQwen2Pattern, scan_qwen2}};

// Of characters at which the patterns decide something, and some of every class.
std::string random_text(RandomWords& words) {
  static const char* const kParts[] = {
      " ",      " ", "  ", "\n",     "\r",     "\t",     "\u00a0", "\u3000",     "\u2028",    "\u0085", "\u180e", "'",
      "'",      "s", "S",  "t",      "r",      "e",      "E",      "v",          "m",         "l",      "L",      "d",
      "\u017f", "a", "Z",  "\u00e9", "\u4f60", "\u0644", "0",      "7",          "\u0663",    "\u00bd", "\u216b", "!",
      ".",      "-", "_",  "\u0301", "\u200d", "\u20ac", "\x1c",   "\U0001f600", "\U00020000"};
  std::string text;
  for (std::uint64_t n = 1 + words.below(24); n > 0; --n) {
    if (words.below(16) == 0) {
      // Assigned before Unicode 14, which every PCRE2 of today knows.
      append_utf8(static_cast<char32_t>(1 + words.below(0xD7A3)), text);
    } else {
      text += kParts[words.below(std::size(kParts))];
    }
  }
  return text;
}

// Where the library's Unicode is older than the table, they may differ in new characters.
bool classes_agree(std::string_view text, const Regex& letter, const Regex& number) {
  for (std::size_t at = 0; at < text.size();) {
    const Utf8Char c = utf8_char_at(text.data() + at);
    const CharClass kind = UnicodeClasses::get().char_class(c.code_point);
    const std::string_view character = text.substr(at, c.bytes);
    if (letter.find(character, 0).has_value() != (kind == CharClass::letter) ||
        number.find(character, 0).has_value() != (kind == CharClass::number)) {
      return false;
    }
    at += c.bytes;
  }
  return true;
}

void compare(std::uint64_t seed, int trials) {
  const Regex letter(R"(\p{L})", "letter");
  const Regex number(R"(\p{N})", "number");
  RandomWords words(seed, RandomStream::test, 1);
  for (const Case& c : kCases) {
    const Regex regex(c.pattern, c.name);
    int compared = 0;
    for (int trial = 0; trial < trials; ++trial) {
      const std::string text = random_text(words);
      if (!classes_agree(text, letter, number)) continue;
      ASSERT_EQ(by_scanner(c.scanner, text), by_regex(regex, text)) << c.name << ": " << text;
      ++compared;
    }
    EXPECT_GT(compared, trials * 9 / 10);
  }
}

TEST(Scanners, AgreeWithTheirPatterns) {
  compare(1, 4000);
}
TEST(ScannersSweep, AgreeWithTheirPatterns) {
  compare(2, 1'000'000);
}

TEST(Scanners, AreLinearInWhiteSpace) {
  const std::string text = std::string(4 << 20, ' ') + std::string(4 << 20, '\n') + std::string(4 << 20, '\t') + "x";
  for (const Case& c : kCases) EXPECT_LE(by_scanner(c.scanner, text).size(), 4u) << c.name;
}

TEST(Scanners, AreFoundByTheirPattern) {
  for (const Case& c : kCases) EXPECT_EQ(scanner_of(c.pattern), c.scanner);
  EXPECT_EQ(scanner_of("\\p{L}+"), nullptr);
}

TEST(UnicodeClasses, HaveEveryClass) {
  const UnicodeClasses& classes = UnicodeClasses::get();
  EXPECT_EQ(classes.char_class('a'), CharClass::letter);
  EXPECT_EQ(classes.char_class(0x1C89), CharClass::letter);  // of Unicode 16
  EXPECT_EQ(classes.char_class(0xBD), CharClass::number);
  EXPECT_EQ(classes.char_class(0x2029), CharClass::space);
  EXPECT_EQ(classes.char_class(0x180E), CharClass::other);
  EXPECT_EQ(classes.char_class(0x1C), CharClass::other);
  EXPECT_EQ(classes.char_class(0x10FFFF), CharClass::other);
  EXPECT_TRUE(classes.word('_') && classes.word(0x301) && classes.word(0x200D) && classes.word(0x24D0));
  EXPECT_FALSE(classes.word('-') || classes.word(0xBD) || classes.word(' '));
}

TEST(RegexSyntax, TranslatesWhatDiffers) {
  const auto matches = [](const char* pattern, std::string_view text) {
    const auto match = Regex(pattern, "test").find(text, 0);
    return match ? std::string(text.substr(match->begin, match->end - match->begin)) : std::string("none");
  };
  EXPECT_EQ(matches(R"(\s+)", "a\u180e\u2003 b"), "\u2003 ");
  EXPECT_EQ(matches(R"([^\s\p{L}]+)", "a \u180e!b"), "\u180e!");
  EXPECT_EQ(matches(R"(\S+)", " \u180ex y"), "\u180ex");
  EXPECT_EQ(matches(R"(\p{Han}+)", "a\u3001\u4f60\u597d\u3002"), "\u4f60\u597d");
  EXPECT_EQ(matches(R"(\p{^Lu}\P{Ll})", "ABaB"), "aB");
  EXPECT_EQ(matches(R"([\[\]\\\-{}]+(?=a))", "x[]\\-{}a"), "[]\\-{}");
  EXPECT_EQ(matches(R"(^b$)", "a\nb\nc"), "b");
  EXPECT_EQ(matches(R"(a.c)", "a\nca\rc"), "a\rc");
  EXPECT_EQ(matches(R"((a|b){2,3}c)", "abababc"), "babc");
  EXPECT_EQ(matches(R"(\x{1F600}|\u00e9\x41)", "\u00e9A"), "\u00e9A");
  EXPECT_EQ(matches(R"((?i:'s))", "'\u017f"), "'\u017f");
}

TEST(RegexSyntax, RefusesWhatItCannotTranslate) {
  const std::pair<const char*, const char*> refused[] = {
      {R"(\w+)", "\\w at byte 0"},
      {R"(a\b)", "\\b at byte 1"},
      {R"([a[bc]])", "a class within a class at byte 2"},
      {R"([a&&b])", "an intersection of classes at byte 2"},
      {R"([^])", "an empty class at byte 2"},
      {R"([a)", "a class without ] at byte 2"},
      {R"((?<name>a))", "the group (?<n at byte 0"},
      {R"((?m:a))", "the group (?m: at byte 0"},
      {R"((*ACCEPT))", "the group (*AC at byte 0"},
      {R"(a{2}+)", "a quantifier after {..} at byte 1"},
      {R"(a{,2})", "a brace that is no quantifier (write \\{) at byte 1"},
      {R"(\p{L)", "a \\p without {..} at byte 0"},
      {R"(\p{sc=Han})", "\\p{sc=Han} at byte 0"},
      {R"(\xFF)", "a \\x of a single byte at byte 0"},
      {R"((a)\1)", "\\1 at byte 3"},
      {"a\\", "a backslash at the end at byte 1"},
  };
  for (const auto& [pattern, message] : refused) {
    EXPECT_EQ(
        data_test::message_of(ExitCode::storage, [&] { pcre2_pattern(pattern, "file"); }),
        fmt::format("file: {} of the pattern {}: not among the regular expressions that weft runs", message, pattern));
  }
  EXPECT_EQ(data_test::message_of(ExitCode::storage, [&] { Regex("(a", "file"); }),
            "file: the pattern (a is no regular expression: missing closing parenthesis (near byte 4)");
}

TEST(Regex, GivesUpOnExplosions) {
  const Regex regex("(a+)+b", "file");
  const std::string text = std::string(40, 'a') + "!b";
  EXPECT_EQ(data_test::message_of(ExitCode::config, [&] { regex.find(text, 0); }),
            "file: the pattern cannot be matched at byte 0 of a text of 42 bytes: match limit exceeded");
}

}  // namespace
}  // namespace weft
