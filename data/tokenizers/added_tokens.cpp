#include "data/tokenizers/added_tokens.h"

#include <algorithm>
#include <numeric>

#include "autograd/check.h"
#include "data/tokenizers/unicode_classes.h"

namespace weft {

namespace {

// The last character of a text that is not empty.
Utf8Char last_char(std::string_view text) {
  const char* p = text.data() + text.size() - 1;
  while (p != text.data() && (static_cast<unsigned char>(*p) & 0xC0) == 0x80) --p;
  return utf8_char_at(p);
}

bool word_before(std::string_view text) {
  return !text.empty() && UnicodeClasses::get().word(last_char(text).code_point);
}
bool word_after(std::string_view text) {
  return !text.empty() && UnicodeClasses::get().word(utf8_char_at(text.data()).code_point);
}

bool space(std::uint32_t code_point) {
  return UnicodeClasses::get().char_class(code_point) == CharClass::space;
}

std::size_t without_trailing_space(std::string_view text) {
  while (!text.empty()) {
    const Utf8Char c = last_char(text);
    if (!space(c.code_point)) break;
    text.remove_suffix(c.bytes);
  }
  return text.size();
}
std::size_t leading_space(std::string_view text) {
  std::size_t bytes = 0;
  while (bytes < text.size()) {
    const Utf8Char c = utf8_char_at(text.data() + bytes);
    if (!space(c.code_point)) break;
    bytes += c.bytes;
  }
  return bytes;
}

}  // namespace

AddedTokenMatcher::AddedTokenMatcher(std::vector<Pattern> patterns) : patterns_(std::move(patterns)) {
  if (patterns_.empty()) return;
  for (const Pattern& pattern : patterns_) {
    const std::size_t bytes = pattern.content.size();
    WEFT_CHECK(bytes > 0 && bytes <= kMaxContentBytes, "an added token of {} bytes", bytes);
  }
  std::vector<std::int32_t> order(patterns_.size());
  std::iota(order.begin(), order.end(), 0);
  const auto content = [this](std::int32_t i) -> const std::string& {
    return patterns_[static_cast<std::size_t>(i)].content;
  };
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) { return content(a) < content(b); });
  order.erase(
      std::unique(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) { return content(a) == content(b); }),
      order.end());
  add_node(0, order.size(), 0, order);
  for (const Pattern& pattern : patterns_) starts_[static_cast<unsigned char>(pattern.content[0])] = true;
}

// The node of the first `depth` bytes, which the sorted contents [first, last) share. Depth of recursion: the length of
// a content.
std::uint32_t AddedTokenMatcher::add_node(std::size_t first, std::size_t last, std::size_t depth,
                                          const std::vector<std::int32_t>& order) {
  const auto content = [&](std::size_t i) -> const std::string& {
    return patterns_[static_cast<std::size_t>(order[i])].content;
  };
  const auto node = static_cast<std::uint32_t>(nodes_.size());
  nodes_.emplace_back();
  if (content(first).size() == depth) nodes_[node].pattern = order[first++];
  std::vector<Edge> edges;
  while (first < last) {
    const char byte = content(first)[depth];
    std::size_t end = first + 1;
    while (end < last && content(end)[depth] == byte) ++end;
    edges.push_back({static_cast<unsigned char>(byte), add_node(first, end, depth + 1, order)});
    first = end;
  }
  nodes_[node].first_edge = static_cast<std::uint32_t>(edges_.size());
  nodes_[node].edges = static_cast<std::uint32_t>(edges.size());
  edges_.insert(edges_.end(), edges.begin(), edges.end());
  return node;
}

std::int32_t AddedTokenMatcher::longest_at(std::string_view text) const {
  std::int32_t found = -1;
  std::uint32_t node = 0;
  for (const char c : text) {
    const auto begin = edges_.begin() + nodes_[node].first_edge;
    const auto end = begin + nodes_[node].edges;
    const auto edge = std::lower_bound(begin, end, static_cast<unsigned char>(c),
                                       [](const Edge& e, unsigned char b) { return e.byte < b; });
    if (edge == end || edge->byte != static_cast<unsigned char>(c)) break;
    node = edge->node;
    if (nodes_[node].pattern >= 0) found = nodes_[node].pattern;
  }
  return found;
}

void AddedTokenMatcher::split(std::string_view text, bool special_tokens, std::vector<TokenOrText>& parts) const {
  if (patterns_.empty()) {
    if (!text.empty()) parts.push_back({-1, text});
    return;
  }
  std::size_t done = 0;  // everything before is in `parts`
  for (std::size_t at = 0; at < text.size();) {
    if (!starts_[static_cast<unsigned char>(text[at])]) {
      ++at;
      continue;
    }
    const std::int32_t found = longest_at(text.substr(at));
    if (found < 0) {
      ++at;
      continue;
    }
    // A match that is not used is passed over as a whole: what lies in it is not looked at again.
    const Pattern& pattern = patterns_[static_cast<std::size_t>(found)];
    std::size_t begin = at;
    std::size_t end = at + pattern.content.size();
    at = end;
    if (pattern.token.special && !special_tokens) continue;
    if (pattern.token.single_word && (word_before(text.substr(0, begin)) || word_after(text.substr(end)))) continue;
    if (pattern.token.lstrip) begin = std::max(done, without_trailing_space(text.substr(0, begin)));
    if (pattern.token.rstrip) end += leading_space(text.substr(end));
    if (done < begin) parts.push_back({-1, text.substr(done, begin - done)});
    parts.push_back({pattern.token.id, text.substr(begin, end - begin)});
    done = end;
  }
  if (done < text.size()) parts.push_back({-1, text.substr(done)});
}

}  // namespace weft
