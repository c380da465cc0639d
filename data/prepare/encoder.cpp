#include "data/prepare/encoder.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "autograd/check.h"
#include "data/prepare/jsonl.h"
#include "data/storage/utf8.h"

namespace weft {

namespace {

class Encoder {
 public:
  Encoder(const PrepareOptions& options, const RecordRule& rule, const Tokenizer& tokenizer, EncodedBatch& out)
      : options_(options), rule_(rule), tokenizer_(tokenizer), out_(out) {}

  void record(std::string_view record, std::int64_t line) {
    line_ = line;
    std::string_view text = record;
    if (rule_.format == InputFormat::jsonl) {
      if (static_cast<std::int64_t>(record.size()) > options_.max_line_bytes) {
        return skip(Skip::too_large, fmt::format("a line of {} bytes", record.size()));
      }
      if (!make_valid(text, repaired_)) return;
      const LineText found = extract_text(text, options_.text_field, scratch_);
      if (found.status != LineStatus::ok) return skip_line(found);
      text = found.text;
    }
    if (static_cast<std::int64_t>(text.size()) > options_.max_doc_bytes) {
      return skip(Skip::too_large, fmt::format("a document of {} bytes", text.size()));
    }
    if (text.empty()) return skip(Skip::empty, "an empty document");
    if (rule_.format == InputFormat::text && !make_valid(text, repaired_)) return;
    keep(text);
  }

  void skip(Skip reason, std::string what) {
    const bool first = std::none_of(out_.examples.begin(), out_.examples.end(),
                                    [&](const SkipExample& example) { return example.reason == reason; });
    if (first) {
      out_.examples.push_back({reason, static_cast<std::int64_t>(out_.documents.size()), line_, std::move(what)});
    }
    out_.documents.push_back({reason, 0, 0, {}});
  }

  void check_ids() const {
    const auto vocab = static_cast<std::uint64_t>(tokenizer_.vocab_size());
    std::uint32_t largest = 0;
    for (const std::uint16_t id : out_.narrow) largest = std::max<std::uint32_t>(largest, id);
    for (const std::int32_t id : out_.wide) largest = std::max(largest, static_cast<std::uint32_t>(id));
    WEFT_CHECK(largest < vocab, "tokenizer {} gave id {}, its vocabulary has {}", tokenizer_.name(), largest, vocab);
  }

 private:
  bool make_valid(std::string_view& text, std::string& repaired) {
    const std::size_t valid = valid_utf8_prefix(text);
    if (valid == text.size()) return true;
    if (!options_.replace_invalid) {
      skip(Skip::invalid_utf8, fmt::format("invalid UTF-8 at byte {} of the {}", valid,
                                           rule_.format == InputFormat::jsonl ? "line" : "document"));
      return false;
    }
    repaired = repair_utf8(text);
    text = repaired;
    return true;
  }

  void skip_line(const LineText& found) {
    switch (found.status) {
      case LineStatus::no_text:
        return skip(Skip::no_text, fmt::format("no member \"{}\" that is a string", options_.text_field));
      case LineStatus::lone_surrogate:
        return skip(Skip::lone_surrogate, fmt::format("byte {}: {}", found.byte, found.problem));
      case LineStatus::ok:
      case LineStatus::invalid_json:
        return skip(Skip::invalid_json, fmt::format("invalid JSON at byte {}: {}", found.byte, found.problem));
    }
  }

  void keep(std::string_view text) {
    const bool narrow = tokenizer_.vocab_size() <= 65536;
    const std::size_t tokens = narrow ? append(text, out_.narrow) : append(text, out_.wide);
    EncodedDocument document;
    document.tokens = static_cast<std::uint32_t>(tokens);
    document.bytes = static_cast<std::uint32_t>(text.size());
    if (options_.dedup_exact) document.hash = content_hash(text);
    out_.documents.push_back(document);
  }

  template <class Id>
  std::size_t append(std::string_view text, std::vector<Id>& ids) {
    const std::size_t before = ids.size();
    if (options_.bos) ids.push_back(static_cast<Id>(tokenizer_.bos_id()));
    tokenizer_.encode(text, ids);
    if (tokenizer_.eos_id() >= 0) ids.push_back(static_cast<Id>(tokenizer_.eos_id()));
    return ids.size() - before;
  }

  static std::array<std::uint64_t, 2> content_hash(std::string_view text) {
    const std::size_t end = text.find_last_not_of(" \t\n\v\f\r");
    const Sha256::Digest digest = sha256(text.substr(0, end == text.npos ? 0 : end + 1));
    std::array<std::uint64_t, 2> hash;
    std::memcpy(hash.data(), digest.data(), sizeof hash);
    return hash;
  }

  const PrepareOptions& options_;
  const RecordRule& rule_;
  const Tokenizer& tokenizer_;
  EncodedBatch& out_;
  std::int64_t line_ = 0;
  std::string scratch_;
  std::string repaired_;
};

}  // namespace

EncodedBatch encode_batch(TextBatch batch, const PrepareOptions& options, const RecordRule& rule,
                          const Tokenizer& tokenizer) {
  EncodedBatch out;
  out.text_bytes = static_cast<std::int64_t>(batch.text.size());
  // A token a byte is the most that byte-level vocabularies give; documents add their terminators.
  if (tokenizer.vocab_size() <= 65536) out.narrow.reserve(batch.text.size() + batch.text.size() / 16);
  Encoder encoder(options, rule, tokenizer, out);
  if (batch.oversized) {
    const bool jsonl = rule.format == InputFormat::jsonl;
    encoder.skip(Skip::too_large, fmt::format("a {} of more than {} bytes", jsonl ? "line" : "document",
                                              jsonl ? options.max_line_bytes : options.max_doc_bytes));
    out.lines = jsonl ? 1 : 0;
  } else if (batch.empty_document) {
    encoder.skip(Skip::empty, "an empty document");
  } else {
    out.lines =
        rule.for_each(batch.text, [&](std::string_view record, std::int64_t line) { encoder.record(record, line); });
  }
  encoder.check_ids();
  batch.text = std::string();
  out.source = std::move(batch);
  return out;
}

}  // namespace weft
