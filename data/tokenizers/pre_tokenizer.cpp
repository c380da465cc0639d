#include "data/tokenizers/pre_tokenizer.h"

#include <algorithm>

#include "data/tokenizers/normalizer.h"

namespace weft {

namespace {

// A stretch of the text: a match, or what lies between matches. Together they are the text.
struct Stretch {
  std::size_t begin = 0;
  std::size_t end = 0;
  bool match = false;
};

class Stretches {
 public:
  explicit Stretches(std::size_t text_bytes) : text_bytes_(text_bytes) {}
  void add_match(std::size_t begin, std::size_t end) {
    if (begin > done_) list_.push_back({done_, begin, false});
    if (end > begin) list_.push_back({begin, end, true});
    done_ = end;
  }
  std::vector<Stretch> take() {
    if (done_ < text_bytes_) list_.push_back({done_, text_bytes_, false});
    return std::move(list_);
  }

 private:
  std::vector<Stretch> list_;
  std::size_t done_ = 0;
  std::size_t text_bytes_;
};

std::vector<Stretch> stretches_of(const SplitPattern& pattern, std::string_view text) {
  Stretches found(text.size());
  if (const auto* scanner = std::get_if<Scanner>(&pattern)) {
    const UnicodeClasses& classes = UnicodeClasses::get();
    const char* const end = text.data() + text.size();
    for (const char* p = text.data(); p != end;) {
      const char* const next = (*scanner)(p, end, classes);
      found.add_match(static_cast<std::size_t>(p - text.data()), static_cast<std::size_t>(next - text.data()));
      p = next;
    }
  } else if (const auto* regex = std::get_if<Regex>(&pattern)) {
    for (std::size_t from = 0; from < text.size();) {
      const std::optional<RegexMatch> match = regex->find(text, from);
      if (!match) break;
      found.add_match(match->begin, match->end);
      // After an empty match the search goes on behind the next character.
      from = match->end > match->begin  ? match->end
             : match->end < text.size() ? match->end + utf8_char_at(text.data() + match->end).bytes
                                        : text.size();
    }
  } else {
    const std::string& literal = std::get<std::string>(pattern);
    for (std::size_t at = text.find(literal); at != std::string_view::npos;
         at = text.find(literal, at + literal.size())) {
      found.add_match(at, at + literal.size());
    }
  }
  return found.take();
}

// Neighbours that belong together become one stretch.
std::vector<Stretch> merged(const std::vector<Stretch>& list, SplitBehavior behavior) {
  std::vector<Stretch> out;
  if (behavior == SplitBehavior::merged_with_next) {
    bool after_match = false;
    for (auto stretch = list.rbegin(); stretch != list.rend(); ++stretch) {
      if (stretch->match && !after_match && !out.empty()) {
        out.back().begin = stretch->begin;
      } else {
        out.push_back(*stretch);
      }
      after_match = stretch->match;
    }
    std::reverse(out.begin(), out.end());
    return out;
  }
  bool before_match = false;
  for (const Stretch& stretch : list) {
    const bool joins =
        behavior == SplitBehavior::contiguous ? stretch.match == before_match : stretch.match && !before_match;
    if (joins && !out.empty()) {
      out.back().end = stretch.end;
    } else {
      out.push_back(stretch);
    }
    before_match = stretch.match;
  }
  return out;
}

void split(const SplitStep& step, std::string_view text, std::vector<std::string_view>& pieces) {
  std::vector<Stretch> list = stretches_of(step.pattern, text);
  if (step.invert) {
    for (Stretch& stretch : list) stretch.match = !stretch.match;
  }
  const bool merges = step.behavior != SplitBehavior::isolated && step.behavior != SplitBehavior::removed;
  for (const Stretch& stretch : merges ? merged(list, step.behavior) : list) {
    if (stretch.match && step.behavior == SplitBehavior::removed) continue;
    pieces.push_back(text.substr(stretch.begin, stretch.end - stretch.begin));
  }
}

void split_digits(bool individual, std::string_view text, std::vector<std::string_view>& pieces) {
  const UnicodeClasses& classes = UnicodeClasses::get();
  std::size_t begin = 0;
  bool in_digits = false;
  const auto cut_before = [&](std::size_t at) {
    if (at > begin) pieces.push_back(text.substr(begin, at - begin));
    begin = at;
  };
  for (std::size_t at = 0; at < text.size();) {
    const auto byte = static_cast<unsigned char>(text[at]);
    bool digit = byte >= '0' && byte <= '9';
    std::size_t bytes = 1;
    if (byte >= 0x80) {
      const Utf8Char c = utf8_char_at(text.data() + at);
      digit = classes.char_class(c.code_point) == CharClass::number;
      bytes = c.bytes;
    }
    if (digit != in_digits || (digit && individual)) cut_before(at);
    in_digits = digit;
    at += bytes;
  }
  cut_before(text.size());
}

void split_metaspace(const MetaspaceStep& step, std::string_view text, bool at_start, std::string& buffer,
                     std::vector<std::string_view>& pieces) {
  const std::string& mark = step.replacement;
  buffer.clear();
  const bool wanted = step.prepend == PrependScheme::always || (step.prepend == PrependScheme::first && at_start);
  if (wanted && text[0] != ' ' && !text.starts_with(mark)) buffer = mark;
  replace_all(text, " ", mark, buffer);
  const std::string_view marked = buffer;
  std::size_t begin = 0;
  while (step.split && begin < marked.size()) {
    const std::size_t next = marked.find(mark, begin + (marked.substr(begin).starts_with(mark) ? mark.size() : 0));
    if (next == std::string_view::npos) break;
    pieces.push_back(marked.substr(begin, next - begin));
    begin = next;
  }
  pieces.push_back(marked.substr(begin));
}

void byte_level(const ByteLevelStep& step, std::string_view text, std::string& buffer,
                std::vector<std::string_view>& pieces) {
  if (step.add_prefix_space && text[0] != ' ') {
    buffer = " ";
    buffer += text;
    text = buffer;
  }
  if (!step.use_regex) {
    pieces.push_back(text);
    return;
  }
  const UnicodeClasses& classes = UnicodeClasses::get();
  const char* const end = text.data() + text.size();
  for (const char* p = text.data(); p != end;) {
    const char* const next = scan_gpt2(p, end, classes);
    pieces.emplace_back(p, static_cast<std::size_t>(next - p));
    p = next;
  }
}

// The scanner that the steps amount to, if nothing else is among them.
Scanner only_scanner(const std::vector<PreTokenizerStep>& steps) {
  Scanner scanner = nullptr;
  for (const PreTokenizerStep& step : steps) {
    Scanner own = nullptr;
    if (const auto* bytes = std::get_if<ByteLevelStep>(&step)) {
      if (bytes->add_prefix_space) return nullptr;
      if (!bytes->use_regex) continue;
      own = scan_gpt2;
    } else if (const auto* split_step = std::get_if<SplitStep>(&step)) {
      // A scanner leaves nothing between its matches.
      const auto* found = std::get_if<Scanner>(&split_step->pattern);
      const bool keeps_matches = split_step->behavior == SplitBehavior::isolated ||
                                 (split_step->behavior == SplitBehavior::removed && split_step->invert);
      if (found == nullptr || !keeps_matches) return nullptr;
      own = *found;
    }
    if (own == nullptr || scanner != nullptr) return nullptr;
    scanner = own;
  }
  return scanner;
}

}  // namespace

PreTokenizer::PreTokenizer(std::vector<PreTokenizerStep> steps)
    : steps_(std::move(steps)), only_scanner_(only_scanner(steps_)) {}

void PreTokenizer::cut(const PreTokenizerStep& step, std::string_view text, bool at_start, std::string& buffer,
                       std::vector<std::string_view>& pieces) {
  if (const auto* split_step = std::get_if<SplitStep>(&step)) {
    split(*split_step, text, pieces);
  } else if (const auto* digits = std::get_if<DigitsStep>(&step)) {
    split_digits(digits->individual, text, pieces);
  } else if (const auto* metaspace = std::get_if<MetaspaceStep>(&step)) {
    split_metaspace(*metaspace, text, at_start, buffer, pieces);
  } else {
    byte_level(std::get<ByteLevelStep>(step), text, buffer, pieces);
  }
}

}  // namespace weft
