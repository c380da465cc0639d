// Tokens that are found in the text before anything else is done to it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace weft {

struct AddedToken {
  std::int32_t id = -1;
  std::string content;
  bool special = false;      // stands for no text; text that spells it may be ordinary text
  bool single_word = false;  // only where no word character is beside it
  bool lstrip = false;       // takes the white space before it along
  bool rstrip = false;       // and the white space after it
  bool normalized = true;    // is looked for in normalised text
};

// A part of a text: an added token, or ordinary text (id -1).
struct TokenOrText {
  std::int32_t id = -1;
  std::string_view text;
};

// Leftmost-longest matching of a set of tokens in time linear in the text (times the longest token at worst).
class AddedTokenMatcher {
 public:
  struct Pattern {
    std::string content;  // as it is in the text that is searched; not empty
    AddedToken token;
  };
  // Of what the trie takes a level of recursion a byte.
  static constexpr std::size_t kMaxContentBytes = 1024;

  // Of equal contents the first counts. Contents are of 1 to kMaxContentBytes bytes.
  explicit AddedTokenMatcher(std::vector<Pattern> patterns);

  bool empty() const { return patterns_.empty(); }
  // Appends the parts of `text` (valid UTF-8) in order. What spells a special token stays text unless
  // `special_tokens`.
  void split(std::string_view text, bool special_tokens, std::vector<TokenOrText>& parts) const;

 private:
  struct Node {
    std::uint32_t first_edge = 0;
    std::uint32_t edges = 0;
    std::int32_t pattern = -1;
  };
  struct Edge {
    unsigned char byte = 0;
    std::uint32_t node = 0;
  };

  std::uint32_t add_node(std::size_t first, std::size_t last, std::size_t depth,
                         const std::vector<std::int32_t>& order);
  // The longest pattern that `text` begins with, -1 if none.
  std::int32_t longest_at(std::string_view text) const;

  std::vector<Pattern> patterns_;
  std::vector<Node> nodes_;
  std::vector<Edge> edges_;
  bool starts_[256] = {};
};

}  // namespace weft
