// weft prepare: text and jsonl files to a tokenised dataset. The dataset is a function of inputs and options: number of
// threads, memory and interruptions do not change a byte of it.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "data/tokenizers/tokenizer.h"

namespace weft {

enum class InputFormat : std::uint8_t {
  automatic,  // by name: *.jsonl and *.ndjson (also .gz, .zst) and "-" are jsonl, everything else is text
  text,
  jsonl,
};

enum class TextSplit : std::uint8_t {
  file,       // a file is a document
  blank,      // documents are separated by lines that are empty or hold only white space
  delimiter,  // documents are separated by lines that equal `delimiter`
};

struct PrepareOptions {
  std::vector<std::string> inputs;  // files, folders (all files below), glob patterns, or "-" for standard input
  std::string out;                  // the dataset's folder; must not exist, or be empty
  std::string tokenizer = "byte";   // or a file or folder, as make_tokenizer takes

  InputFormat format = InputFormat::automatic;
  TextSplit split = TextSplit::file;
  std::string delimiter;
  std::string text_field = "text";  // the member of each jsonl object that holds the text

  bool replace_invalid = false;  // invalid UTF-8 becomes U+FFFD; otherwise such documents are skipped
  bool dedup_exact = false;      // drop documents whose text, without trailing white space, came before
  bool bos = false;              // begin each document with BOS
  std::optional<std::uint64_t> shuffle_seed = 0;  // nothing: documents stay in input order
  // Every n-th document goes to a second dataset, OUT-validation; 0: none.
  std::int64_t validation_every = 0;

  int threads = 0;                                       // encoders; 0: one a core
  std::int64_t memory = std::int64_t{2} << 30;           // bytes, at least 16 MiB
  std::int64_t max_doc_bytes = std::int64_t{64} << 20;   // larger documents are skipped
  std::int64_t max_line_bytes = std::int64_t{64} << 20;  // longer jsonl lines are skipped
  std::int64_t max_expansion = 200;                      // of compressed input, beyond its first 64 MiB
  std::int64_t shard_tokens = std::int64_t{1} << 30;
  std::int64_t checkpoint_bytes = std::int64_t{1} << 30;  // of text between two entries of the resume journal
};

struct PrepareProgress {
  std::string phase;       // "reading" or "writing"
  std::int64_t done = 0;   // reading: bytes of the input files; writing: tokens
  std::int64_t total = 0;  // 0: unknown (standard input)
  std::int64_t documents = 0;
};

struct PrepareResult {
  std::string folder;
  std::string validation_folder;  // empty: none
  std::string digest;
  std::string validation_digest;
  std::int64_t documents = 0;  // of both datasets
  std::int64_t tokens = 0;
  std::int64_t text_bytes = 0;                  // UTF-8 bytes of the documents
  std::int64_t input_bytes = 0;                 // text read, decompressed
  std::map<std::string, std::int64_t> skipped;  // documents left out, by reason
  std::vector<std::string> first_skipped;       // one line a reason: file, place, what was wrong
  bool resumed = false;
  double seconds = 0;
};

// Writes the dataset. Work happens in OUT.partial; a run that was interrupted goes on from there when it is started
// again with the same options and inputs. Errors: config for inputs and options, storage for files that cannot be read
// or written. `progress` is called from the calling thread, a few times a second.
PrepareResult prepare(const PrepareOptions& options, const std::function<void(const PrepareProgress&)>& progress = {});

// A few lines for people, without a line break at the end.
std::string describe(const PrepareResult& result);

}  // namespace weft
