// The pre-tokenizers of tokenizer.json: steps that cut a text into the pieces that are encoded one by one.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "data/tokenizers/regex.h"
#include "data/tokenizers/scanners.h"

namespace weft {

// What becomes of the matches of a Split.
enum class SplitBehavior { isolated, removed, merged_with_previous, merged_with_next, contiguous };

// A scanner for the patterns that have one, else a regular expression or a literal text.
using SplitPattern = std::variant<Scanner, Regex, std::string>;

struct SplitStep {
  SplitPattern pattern;
  SplitBehavior behavior = SplitBehavior::isolated;
  bool invert = false;  // what lies between the matches counts as the matches
};
struct DigitsStep {
  bool individual = false;
};
enum class PrependScheme { always, first, never };
// Spaces become `replacement`, one of which is also put in front.
struct MetaspaceStep {
  std::string replacement;
  PrependScheme prepend = PrependScheme::always;
  bool split = true;
};
// Pieces become bytes; always the last step. (Vocabularies spell each byte as a printable character; here tokens are
// kept as bytes instead.)
struct ByteLevelStep {
  bool add_prefix_space = false;
  bool use_regex = true;
};
using PreTokenizerStep = std::variant<SplitStep, DigitsStep, MetaspaceStep, ByteLevelStep>;

// Buffers of one thread.
struct PreTokenizerScratch {
  std::vector<std::string> texts;  // one a step
  std::vector<std::vector<std::string_view>> pieces;
};

class PreTokenizer {
 public:
  explicit PreTokenizer(std::vector<PreTokenizerStep> steps);

  const std::vector<PreTokenizerStep>& steps() const { return steps_; }

  // Calls `use(piece)` for every piece of `text` (valid UTF-8) in order; none is empty. `at_start`: the text is the
  // beginning of what was given to encode.
  template <class Use>
  void for_each_piece(std::string_view text, bool at_start, PreTokenizerScratch& scratch, const Use& use) const {
    if (text.empty()) return;
    if (only_scanner_ != nullptr) {
      scan(only_scanner_, text, use);
      return;
    }
    scratch.texts.resize(steps_.size());
    scratch.pieces.resize(steps_.size());
    apply(0, text, at_start, scratch, use);
  }

 private:
  template <class Use>
  static void scan(Scanner scanner, std::string_view text, const Use& use) {
    const UnicodeClasses& classes = UnicodeClasses::get();
    const char* const end = text.data() + text.size();
    for (const char* p = text.data(); p != end;) {
      const char* const next = scanner(p, end, classes);
      use(std::string_view(p, static_cast<std::size_t>(next - p)));
      p = next;
    }
  }

  template <class Use>
  void apply(std::size_t step, std::string_view text, bool at_start, PreTokenizerScratch& scratch,
             const Use& use) const {
    if (step == steps_.size()) {
      use(text);
      return;
    }
    std::vector<std::string_view>& pieces = scratch.pieces[step];
    pieces.clear();
    cut(steps_[step], text, at_start, scratch.texts[step], pieces);
    // A deeper step has buffers of its own.
    for (const std::string_view piece : pieces) {
      const bool first = piece.data() == text.data() || piece.data() == scratch.texts[step].data();
      apply(step + 1, piece, at_start && first, scratch, use);
    }
  }

  // Appends the pieces of `text`, which point into it or into `buffer`.
  static void cut(const PreTokenizerStep& step, std::string_view text, bool at_start, std::string& buffer,
                  std::vector<std::string_view>& pieces);

  std::vector<PreTokenizerStep> steps_;
  Scanner only_scanner_ = nullptr;  // the steps are one scanner, and nothing that changes the text
};

}  // namespace weft
