#include "data/tokenizers/probe.h"

#include <array>

#include "autograd/check.h"
#include "data/storage/text.h"

namespace weft {

namespace {

constexpr std::size_t kLines = 1000;
constexpr std::array<std::string_view, 64> kParts = {"the",
                                                     "of",
                                                     "and",
                                                     "Training",
                                                     "model",
                                                     "'s",
                                                     "don't",
                                                     "we'll",
                                                     "THE",
                                                     "http://a.b/c?d=e",
                                                     "0",
                                                     "7",
                                                     "42",
                                                     "1999",
                                                     "3.14",
                                                     "10,000",
                                                     "x_1",
                                                     "foo()",
                                                     "{",
                                                     "}",
                                                     "<",
                                                     ">",
                                                     "=",
                                                     "==",
                                                     "...",
                                                     "--",
                                                     "\u2014",
                                                     "!",
                                                     "?",
                                                     "\"quoted\"",
                                                     "caf\u00e9",
                                                     "na\u00efve",
                                                     "stra\u00dfe",
                                                     "\u00e9t\u00e9",
                                                     "e\u0301",
                                                     "\u0434\u043e\u043c",
                                                     "\u041c\u043e\u0441\u043a\u0432\u0430",
                                                     "\u4e2d\u6587",
                                                     "\u65e5\u672c\u8a9e",
                                                     "\ud55c\uad6d\uc5b4",
                                                     "\u0627\u0644\u0639",
                                                     "\u05e9\u05dc\u05d5\u05dd",
                                                     "\u0928\u092e\u0938\u094d\u0924\u0947",
                                                     "\u03b1\u03b2\u03b3",
                                                     "\U0001f600",
                                                     "\U0001f468\u200d\U0001f469",
                                                     "\u00a0",
                                                     "\u3000",
                                                     "\t",
                                                     "    ",
                                                     "  ",
                                                     "\r",
                                                     "ing",
                                                     "un",
                                                     "able",
                                                     "pre",
                                                     "tion",
                                                     "I",
                                                     "a",
                                                     "A",
                                                     "zzz",
                                                     "aaaaaaaa",
                                                     "#",
                                                     "\u2581"};

}  // namespace

std::vector<std::string> probe_lines() {
  std::uint64_t state = 8;
  const auto below = [&](std::uint64_t limit) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (state >> 33) % limit;
  };
  std::vector<std::string> lines;
  while (lines.size() < kLines) {
    std::string line;
    for (std::uint64_t n = below(24); n > 0; --n) {
      line += kParts[below(kParts.size())];
      if (below(4) != 0) line += ' ';
    }
    lines.push_back(std::move(line));
  }
  return lines;
}

void check_same_ids(const Tokenizer& a, const Tokenizer& b, const std::string& source) {
  for (const std::string& line : probe_lines()) {
    const std::vector<std::int32_t> of_a = a.encode(line);
    const std::vector<std::int32_t> of_b = b.encode(line);
    if (of_a == of_b) continue;
    config_error("tokenizer \"{}\": {} and {} differ: \"{}\" is ids {} and ids {}; name the file that is right", source,
                 a.name(), b.name(), printable(line), fmt::join(of_a, " "), fmt::join(of_b, " "));
  }
}

}  // namespace weft
