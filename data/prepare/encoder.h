// From a batch of records to documents of tokens. A pure function of the batch, so that any thread may do it.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "data/prepare/reader.h"
#include "data/tokenizers/tokenizer.h"

namespace weft {

// Why a document is left out. The names are keys of the manifest.
enum class Skip : std::uint8_t {
  none,
  duplicate,
  empty,
  invalid_json,
  invalid_utf8,
  lone_surrogate,
  no_text,
  too_large
};
inline constexpr std::array<std::string_view, 8> kSkipNames = {
    "", "duplicate", "empty", "invalid_json", "invalid_utf8", "lone_surrogate", "no_text", "too_large"};

struct EncodedDocument {
  Skip skip = Skip::none;
  std::uint32_t tokens = 0;
  std::uint32_t bytes = 0;              // of UTF-8 text
  std::array<std::uint64_t, 2> hash{};  // of the text without trailing white space, if duplicates are dropped
};

// The first document of a batch that was skipped for a reason.
struct SkipExample {
  Skip reason = Skip::none;
  std::int64_t document = 0;  // counted within the batch
  std::int64_t line = 0;      // of jsonl, counted within the batch
  std::string what;
};

struct EncodedBatch {
  TextBatch source;             // without the text
  std::int64_t text_bytes = 0;  // length of the text
  std::int64_t lines = 0;       // of jsonl
  std::vector<EncodedDocument> documents;
  std::vector<SkipExample> examples;
  // Tokens of the kept documents one after the other; one of the two, by the vocabulary's size.
  std::vector<std::uint16_t> narrow;
  std::vector<std::int32_t> wide;
};

EncodedBatch encode_batch(TextBatch batch, const PrepareOptions& options, const RecordRule& rule,
                          const Tokenizer& tokenizer);

}  // namespace weft
