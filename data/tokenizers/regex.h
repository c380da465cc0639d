// Regular expressions of tokenizer.json files, which are written for Oniguruma, run by PCRE2.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace weft {

struct RegexMatch {
  std::size_t begin = 0;
  std::size_t end = 0;
};

class Regex {
 public:
  // Takes what means the same to both: literals, escapes (\s \S \d \D \r \n \t \f \v \\ \xHH \x{H..} \uHHHH, escaped
  // punctuation), \p{..} and \P{..} of categories and scripts, classes without nested classes or intersections, groups
  // ( (?: (?i: (?= (?! (?<= (?<! (?>, and quantifiers. Anything else is an Error (storage) that names it and `source`.
  Regex(std::string_view pattern, const std::string& source);

  // The leftmost match that begins at or after `from`. `text` is valid UTF-8 of less than 4 GiB. A search that takes
  // more steps than are reasonable for the length of the text is an Error (config).
  std::optional<RegexMatch> find(std::string_view text, std::size_t from) const;
  // No match has fewer characters.
  std::size_t shortest_match() const;

 private:
  struct Code;
  std::shared_ptr<const Code> code_;
  std::string source_;
};

}  // namespace weft
