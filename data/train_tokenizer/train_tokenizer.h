// weft train-tokenizer: a byte-level BPE vocabulary of a corpus, as a tokenizer.json. The file is a function of inputs
// and options; the number of threads does not change a byte of it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "data/prepare/prepare.h"
#include "data/tokenizers/byte_level_file.h"

namespace weft {

struct TrainTokenizerOptions {
  TrainTokenizerOptions() { corpus.max_doc_bytes = std::int64_t{1} << 31; }

  // Inputs and how they are read; the rest does not matter. A text file is one document of at most max_doc_bytes.
  PrepareOptions corpus;
  std::string out;  // the file, *.json; must not exist
  std::int64_t vocabulary = 0;
  WordStyle style = WordStyle::gpt2;                     // gpt2, llama3 or qwen2
  std::vector<std::string> special = {"<|endoftext|>"};  // ids 0, 1, ...
  std::int64_t min_count = 2;                            // of a pair that becomes a token
  std::int64_t limit_bytes = 0;      // of text, after which reading ends (to a MiB or so); 0: all of it
  std::int64_t max_words = 1 << 26;  // distinct words, about 100 bytes of memory each
};

struct TrainTokenizerProgress {
  std::string phase;  // "reading" (bytes of text) or "merging" (tokens)
  std::int64_t done = 0;
  std::int64_t total = 0;  // 0: unknown
};

struct TrainTokenizerResult {
  std::string file;
  std::int64_t vocabulary = 0;  // less than asked for if no pair occurs min_count times any more
  std::int64_t merges = 0;
  std::int64_t documents = 0;
  std::int64_t skipped = 0;     // documents that are empty, too large, no UTF-8 or no JSON
  std::int64_t text_bytes = 0;  // UTF-8 bytes of the documents
  std::int64_t words = 0;
  std::int64_t distinct_words = 0;
  double reading_seconds = 0;
  double merging_seconds = 0;
};

// Errors: config for options and inputs, storage for files that cannot be read or written.
TrainTokenizerResult train_tokenizer(const TrainTokenizerOptions& options,
                                     const std::function<void(const TrainTokenizerProgress&)>& progress = {});

// A few lines for people, without a line break at the end.
std::string describe(const TrainTokenizerResult& result);

}  // namespace weft
