// The normalizers of tokenizer.json: steps from text to text before it is cut into pieces.
#pragma once

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "data/tokenizers/regex.h"

namespace weft {

enum class UnicodeForm { nfc, nfkc };

struct NormalizeUnicode {
  UnicodeForm form = UnicodeForm::nfc;
};
// In front of every text that is not empty.
struct NormalizePrepend {
  std::string prefix;
};
// Of a literal, leftmost first.
struct NormalizeReplace {
  std::string pattern;
  std::string content;
};
// Of a regular expression, whose matches are not empty.
struct NormalizeReplaceMatches {
  Regex pattern;
  std::string content;
};
using NormalizerStep = std::variant<NormalizeUnicode, NormalizePrepend, NormalizeReplace, NormalizeReplaceMatches>;

// `text` is valid UTF-8. The result is `text` itself if nothing changes, else `buffer`; `spare` is for steps between.
std::string_view normalize(const std::vector<NormalizerStep>& steps, std::string_view text, std::string& buffer,
                           std::string& spare);

// Replaces every occurrence of `pattern`, which is not empty, and appends the result to `out`.
void replace_all(std::string_view text, std::string_view pattern, std::string_view content, std::string& out);

}  // namespace weft
