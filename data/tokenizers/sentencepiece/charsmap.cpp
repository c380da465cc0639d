// The library follows the double array of a normalizer without looking where it leads, so all of it is followed here.

#include <algorithm>
#include <cstring>
#include <vector>

#include "autograd/check.h"
#include "data/storage/utf8.h"
#include "data/tokenizers/sentencepiece/model_file.h"

namespace weft {

namespace {

// The largest in use has 0.3 MB.
constexpr std::size_t kMaxCharsmap = std::size_t{4} << 20;
// Rules that match at one place of a text: the library has room for so many.
constexpr int kMaxMatches = 32;

// Units of the array: bit 31 marks a value (of 31 bits); otherwise bits 0-7 are the label that leads here, bit 8 says
// that a value hangs below, and the rest is the offset of the children.
class CharsmapCheck {
 public:
  CharsmapCheck(std::string_view charsmap, const std::string& source) : source_(source) {
    if (charsmap.size() < 4 || charsmap.size() > kMaxCharsmap) refuse("it has {} bytes", charsmap.size());
    std::uint32_t bytes = 0;
    std::memcpy(&bytes, charsmap.data(), 4);
    if (bytes == 0 || bytes % 4 != 0 || bytes > charsmap.size() - 4) {
      refuse("it claims an array of {} bytes, {} follow", bytes, charsmap.size() - 4);
    }
    units_.resize(bytes / 4);
    std::memcpy(units_.data(), charsmap.data() + 4, bytes);
    texts_ = charsmap.substr(4 + bytes);
    if (!texts_.empty() && texts_.back() != '\0') refuse("its texts do not end");
    if (valid_utf8_prefix(texts_) != texts_.size()) refuse("its texts are no UTF-8");
    matches_below_.assign(units_.size(), kNew);
  }

  bool run() {
    enter(0);
    while (!path_.empty()) {
      Node& node = path_.back();
      if (node.next_label == 256) {
        leave();
        continue;
      }
      const std::uint32_t label = node.next_label++;
      const std::uint32_t child = node.base ^ label;
      if ((units_[child] & (kIsValue | 0xFF)) != label) continue;
      if (label == ' ' && path_.size() > 1) matches_space_ = true;
      if (matches_below_[child] == kOpen) refuse("following unit {} leads round in circles", child);
      if (matches_below_[child] == kNew) {
        enter(child);
      } else {
        node.most_below = std::max(node.most_below, matches_below_[child]);
      }
    }
    return matches_space_;
  }

 private:
  static constexpr std::uint32_t kIsValue = std::uint32_t{1} << 31;
  static constexpr std::uint32_t kHasValue = std::uint32_t{1} << 8;
  static constexpr int kNew = -2;
  static constexpr int kOpen = -1;

  struct Node {
    std::uint32_t unit = 0;
    std::uint32_t base = 0;  // of its children
    std::uint32_t next_label = 0;
    int most_below = 0;
  };

  template <class... Args>
  [[noreturn]] void refuse(FormatString<Args...> format, Args&&... args) const {
    storage_error("{}: the compiled normalisation rules are damaged: {}", source_,
                  format_text<Args...>(format, std::forward<Args>(args)...));
  }

  void enter(std::uint32_t index) {
    const std::uint32_t unit = units_[index];
    const std::uint32_t offset = (unit >> 10) << ((unit & (std::uint32_t{1} << 9)) >> 6);
    const std::uint32_t base = index ^ offset;
    if ((base | 0xFF) >= units_.size()) {
      refuse("unit {} leads to {}, the array has {}", index, base | 0xFF, units_.size());
    }
    if (index != 0 && (unit & kHasValue) != 0) check_value(units_[base] & ~kIsValue);
    matches_below_[index] = kOpen;
    path_.push_back({index, base, 0, 0});
  }

  void check_value(std::uint32_t value) const {
    if (value >= texts_.size()) refuse("a rule's text is at {}, there are {} bytes", value, texts_.size());
    if ((static_cast<unsigned char>(texts_[value]) & 0xC0) == 0x80) {
      refuse("a rule's text begins at {}, inside a character", value);
    }
  }

  void leave() {
    const Node node = path_.back();
    path_.pop_back();
    const bool has_value = node.unit != 0 && (units_[node.unit] & kHasValue) != 0;
    const int matches = node.most_below + (has_value ? 1 : 0);
    if (matches > kMaxMatches) refuse("more than {} rules match at one place", kMaxMatches);
    matches_below_[node.unit] = matches;
    if (!path_.empty()) path_.back().most_below = std::max(path_.back().most_below, matches);
  }

  const std::string& source_;
  std::vector<std::uint32_t> units_;
  std::string_view texts_;
  std::vector<int> matches_below_;  // by unit: most matches on a way down from it
  std::vector<Node> path_;
  bool matches_space_ = false;
};

}  // namespace

bool check_charsmap(std::string_view charsmap, const std::string& source) {
  return CharsmapCheck(charsmap, source).run();
}

}  // namespace weft
