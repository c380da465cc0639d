#include "data/train_tokenizer/count_words.h"

#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "autograd/check.h"
#include "data/prepare/input.h"
#include "data/prepare/jsonl.h"
#include "data/prepare/reader.h"
#include "data/storage/utf8.h"
#include "data/tokenizers/normalizer.h"
#include "data/tokenizers/scanners.h"

namespace weft {

namespace {

// Words that a thread gathers before it hands them over.
constexpr std::int64_t kHandOver = 1 << 18;
// Of a large document, for one thread.
constexpr std::size_t kSliceBytes = std::size_t{1} << 20;

// Where a slice that begins at `begin` ends: before a line break behind a letter or digit, where a word ends in every
// style, or at the end.
std::size_t end_of_slice(std::string_view text, std::size_t begin) {
  for (std::size_t at = begin + kSliceBytes; at < text.size(); ++at) {
    at = text.find('\n', at);
    if (at == text.npos) break;
    const char before = text[at - 1];
    const bool alphanumeric =
        (before >= '0' && before <= '9') || (before >= 'A' && before <= 'Z') || (before >= 'a' && before <= 'z');
    if (alphanumeric) return at;
  }
  return text.size();
}

class WordReader {
 public:
  WordReader(const TrainTokenizerOptions& options, const std::function<void(std::int64_t)>& progress)
      : options_(options),
        progress_(progress),
        inputs_(expand_inputs(options.corpus)),
        reader_(options.corpus, inputs_, {}) {}

  WordCounts run() {
    const int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
    std::vector<std::thread> threads;
    for (int i = 0; i < (options_.corpus.threads > 0 ? options_.corpus.threads : cores); ++i) {
      threads.emplace_back([this] { work(); });
    }
    for (std::thread& thread : threads) thread.join();
    if (error_) std::rethrow_exception(error_);
    all_.documents += large_documents_.documents;
    all_.text_bytes += large_documents_.text_bytes;
    if (all_.words.size() == 0) {
      config_error("the input has no text: {} documents, {} of them cannot be used", all_.documents + all_.skipped,
                   all_.skipped);
    }
    return std::move(all_);
  }

 private:
  // Records, or a slice of a document that has been counted.
  struct Share {
    std::shared_ptr<const TextBatch> batch;
    std::string_view slice;
  };

  // One thread's counts.
  struct Part {
    WordCounts counts;
    std::string scratch, normalized, spare;
  };

  void work() {
    Part part;
    try {
      while (const std::optional<Share> share = next()) {
        if (share->slice.empty()) {
          count(*share->batch, part);
        } else {
          count_text(share->slice, part);
        }
        if (part.counts.words.size() >= kHandOver) hand_over(part);
      }
      hand_over(part);
    } catch (...) {
      const std::lock_guard lock(reading_);
      if (!error_) error_ = std::current_exception();
    }
  }

  // The texts are handed out in order, so that a limit always takes the same ones.
  std::optional<Share> next() {
    const std::lock_guard lock(reading_);
    if (document_ == nullptr) {
      if (error_ || (options_.limit_bytes > 0 && read_ >= options_.limit_bytes)) return std::nullopt;
      std::optional<TextBatch> batch = reader_.next();
      if (!batch) return std::nullopt;
      read_ += static_cast<std::int64_t>(batch->text.size());
      if (progress_) progress_(read_);
      auto shared = std::make_shared<const TextBatch>(std::move(*batch));
      if (!is_large_document(*shared)) return Share{std::move(shared), {}};
      ++large_documents_.documents;
      large_documents_.text_bytes += static_cast<std::int64_t>(shared->text.size());
      document_ = std::move(shared);
      at_ = 0;
    }
    const std::string_view text = document_->text;
    const std::size_t end = end_of_slice(text, at_);
    Share share{document_, text.substr(at_, end - at_)};
    at_ = end;
    if (at_ == text.size()) document_ = nullptr;
    return share;
  }

  // A text file that several threads should share.
  bool is_large_document(const TextBatch& batch) const {
    const RecordRule rule = BatchReader::rule_of(options_.corpus, inputs_[static_cast<std::size_t>(batch.input)]);
    return rule.format == InputFormat::text && rule.split == TextSplit::file && batch.text.size() > kSliceBytes &&
           static_cast<std::int64_t>(batch.text.size()) <= options_.corpus.max_doc_bytes &&
           valid_utf8_prefix(batch.text) == batch.text.size();
  }

  void count(const TextBatch& batch, Part& part) const {
    if (batch.oversized || batch.empty_document) {
      ++part.counts.skipped;
      return;
    }
    const RecordRule rule = BatchReader::rule_of(options_.corpus, inputs_[static_cast<std::size_t>(batch.input)]);
    rule.for_each(batch.text, [&](std::string_view record, std::int64_t) {
      std::string_view text = record;
      bool usable = valid_utf8_prefix(record) == record.size();
      if (usable && rule.format == InputFormat::jsonl) {
        const LineText found = extract_text(record, options_.corpus.text_field, part.scratch);
        usable = found.status == LineStatus::ok;
        text = found.text;
      }
      usable = usable && !text.empty() && static_cast<std::int64_t>(text.size()) <= options_.corpus.max_doc_bytes;
      if (!usable) {
        ++part.counts.skipped;
        return;
      }
      ++part.counts.documents;
      part.counts.text_bytes += static_cast<std::int64_t>(text.size());
      count_text(text, part);
    });
  }

  void count_text(std::string_view text, Part& part) const {
    if (options_.style == WordStyle::qwen2) {
      text = normalize({NormalizeUnicode{UnicodeForm::nfc}}, text, part.normalized, part.spare);
    }
    const Scanner scan = options_.style == WordStyle::gpt2     ? scan_gpt2
                         : options_.style == WordStyle::llama3 ? scan_llama3
                                                               : scan_qwen2;
    const UnicodeClasses& classes = UnicodeClasses::get();
    const char* const end = text.data() + text.size();
    for (const char* p = text.data(); p != end;) {
      const char* const word_end = scan(p, end, classes);
      for (; p != word_end; ++part.counts.total) {
        const std::size_t bytes = std::min(static_cast<std::size_t>(word_end - p), kMaxWordBytes);
        part.counts.words.add({p, bytes}, 1);
        p += bytes;
      }
    }
  }

  void hand_over(Part& part) {
    const std::lock_guard lock(adding_);
    all_.words.add(part.counts.words);
    all_.documents += part.counts.documents;
    all_.skipped += part.counts.skipped;
    all_.text_bytes += part.counts.text_bytes;
    all_.total += part.counts.total;
    part.counts = {};
    if (all_.words.size() > options_.max_words) {
      config_error("more than {} distinct words; read less of the text with --limit, or allow more with --max-words",
                   options_.max_words);
    }
  }

  const TrainTokenizerOptions& options_;
  const std::function<void(std::int64_t)>& progress_;
  std::vector<PrepareInput> inputs_;
  std::mutex reading_;
  BatchReader reader_;
  std::int64_t read_ = 0;
  std::shared_ptr<const TextBatch> document_;  // being handed out in slices
  std::size_t at_ = 0;
  WordCounts large_documents_;
  std::exception_ptr error_;
  std::mutex adding_;
  WordCounts all_;
};

}  // namespace

WordCounts count_words(const TrainTokenizerOptions& options, const std::function<void(std::int64_t)>& progress) {
  return WordReader(options, progress).run();
}

}  // namespace weft
