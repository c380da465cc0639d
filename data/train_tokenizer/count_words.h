// From a corpus to its distinct words.
#pragma once

#include <cstdint>
#include <functional>

#include "data/train_tokenizer/train_tokenizer.h"
#include "data/train_tokenizer/word_table.h"

namespace weft {

// Longer words are cut, so that nobody's file without spaces makes merging slow.
inline constexpr std::size_t kMaxWordBytes = 1024;

struct WordCounts {
  WordTable words;
  std::int64_t documents = 0;
  std::int64_t skipped = 0;
  std::int64_t text_bytes = 0;
  std::int64_t total = 0;  // words
};

// Reads on `options.corpus.threads` threads. `progress` gets bytes of text, from any one thread at a time. Error
// (config) if there are more distinct words than options.max_words, or none.
WordCounts count_words(const TrainTokenizerOptions& options, const std::function<void(std::int64_t)>& progress);

}  // namespace weft
