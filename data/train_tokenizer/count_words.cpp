#include "data/train_tokenizer/count_words.h"

#include <exception>
#include <mutex>
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
    if (all_.words.size() == 0) {
      config_error("the input has no text: {} documents, {} of them cannot be used", all_.documents + all_.skipped,
                   all_.skipped);
    }
    return std::move(all_);
  }

 private:
  // One thread's share.
  struct Part {
    WordCounts counts;
    std::string scratch, normalized, spare;
  };

  void work() {
    Part part;
    try {
      while (const std::optional<TextBatch> batch = next()) {
        count(*batch, part);
        if (part.counts.words.size() >= kHandOver) hand_over(part);
      }
      hand_over(part);
    } catch (...) {
      const std::lock_guard lock(reading_);
      if (!error_) error_ = std::current_exception();
    }
  }

  // The texts are handed out in order, so that a limit always takes the same ones.
  std::optional<TextBatch> next() {
    const std::lock_guard lock(reading_);
    if (error_ || (options_.limit_bytes > 0 && read_ >= options_.limit_bytes)) return std::nullopt;
    std::optional<TextBatch> batch = reader_.next();
    if (batch) read_ += static_cast<std::int64_t>(batch->text.size());
    if (progress_) progress_(read_);
    return batch;
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
  std::exception_ptr error_;
  std::mutex adding_;
  WordCounts all_;
};

}  // namespace

WordCounts count_words(const TrainTokenizerOptions& options, const std::function<void(std::int64_t)>& progress) {
  return WordReader(options, progress).run();
}

}  // namespace weft
