#include "data/prepare/reader.h"

#include <algorithm>

#include "autograd/check.h"
#include "data/storage/crc32c.h"

namespace weft {

namespace {

constexpr std::size_t kChunk = std::size_t{1} << 20;
// A line longer than this does not separate documents, even if it is blank.
constexpr std::size_t kMaxSeparator = std::size_t{64} << 10;

std::uint32_t crc_of(std::string_view text, std::uint32_t crc) {
  return crc32c(std::as_bytes(std::span(text)), crc);
}

}  // namespace

BatchReader::BatchReader(const PrepareOptions& options, const std::vector<PrepareInput>& inputs, ReadPosition position)
    : options_(options), inputs_(inputs), position_(position) {
  for (std::int64_t i = 0; i < position.input; ++i) {
    raw_before_ += std::max<std::int64_t>(inputs[static_cast<std::size_t>(i)].bytes, 0);
  }
}

RecordRule BatchReader::rule_of(const PrepareOptions& options, const PrepareInput& input) {
  return {input.format, options.split, options.delimiter};
}

std::size_t BatchReader::max_record() const {
  return static_cast<std::size_t>(rule_.format == InputFormat::jsonl ? options_.max_line_bytes
                                                                     : options_.max_doc_bytes);
}

void BatchReader::open() {
  const PrepareInput& input = inputs_[static_cast<std::size_t>(position_.input)];
  rule_ = rule_of(options_, input);
  stream_ = std::make_unique<TextStream>(input, options_.max_expansion);
  at_end_ = false;
  buffer_.clear();
  if (position_.offset > 0) {
    skip_to_position();
    return;
  }
  while (buffer_.size() < 3 && fill()) {
  }
  // A byte order mark is no text.
  if (buffer_.starts_with("\xEF\xBB\xBF")) consume(3);
}

void BatchReader::skip_to_position() {
  const ReadPosition wanted = position_;
  position_.offset = 0;
  position_.crc = 0;
  while (position_.offset < wanted.offset) {
    if (buffer_.empty() && !fill()) break;
    consume(static_cast<std::size_t>(
        std::min<std::int64_t>(static_cast<std::int64_t>(buffer_.size()), wanted.offset - position_.offset)));
  }
  if (position_.offset != wanted.offset || position_.crc != wanted.crc) {
    config_error("{}: its first {} bytes of text are not those of the interrupted run; remove {}.partial to start anew",
                 inputs_[static_cast<std::size_t>(wanted.input)].path, wanted.offset, options_.out);
  }
}

// Appends up to a chunk of text; short reads of pipes are joined, so that batches depend on the text alone.
bool BatchReader::fill() {
  const std::size_t before = buffer_.size();
  buffer_.resize(before + kChunk);
  std::size_t got = 0;
  while (!at_end_ && got < kChunk) {
    const std::size_t n = stream_->read(std::span(buffer_).subspan(before + got));
    if (n == 0) at_end_ = true;
    got += n;
  }
  buffer_.resize(before + got);
  return got > 0;
}

void BatchReader::consume(std::size_t bytes) {
  position_.crc = crc_of(std::string_view(buffer_).substr(0, bytes), position_.crc);
  position_.offset += static_cast<std::int64_t>(bytes);
  buffer_.erase(0, bytes);
}

// The first `bytes` of the buffer as a batch.
TextBatch BatchReader::batch(std::size_t bytes) {
  TextBatch batch;
  batch.sequence = sequence_++;
  batch.input = position_.input;
  position_.crc = crc_of(std::string_view(buffer_).substr(0, bytes), position_.crc);
  position_.offset += static_cast<std::int64_t>(bytes);
  // The batch takes the buffer; only the beginning of the next record is copied.
  std::string rest = buffer_.substr(bytes);
  rest.reserve(rest.size() + kChunk);
  buffer_.resize(bytes);
  batch.text = std::move(buffer_);
  buffer_ = std::move(rest);
  batch.raw_bytes = raw_before_ + stream_->raw_bytes();
  batch.end = position_;
  return batch;
}

// Drops text up to the end of the record at the start of the buffer.
void BatchReader::discard_record() {
  bool inside_line = false;  // the buffer begins within a line that separates nothing
  for (;;) {
    if (inside_line) {
      const std::size_t newline = buffer_.find('\n');
      consume(newline == buffer_.npos ? buffer_.size() : newline + 1);
      inside_line = newline == buffer_.npos;
      if (!inside_line && rule_.format == InputFormat::jsonl) return;
    }
    if (!inside_line) {
      if (const std::size_t end = rule_.first_end(buffer_); end > 0) {
        consume(end);
        return;
      }
      // Only the last, unfinished line can still become a separator.
      const std::size_t newline = buffer_.rfind('\n');
      const std::size_t line = newline == buffer_.npos ? 0 : newline + 1;
      inside_line = buffer_.size() - line > kMaxSeparator;
      consume(inside_line ? buffer_.size() : line);
    }
    if (!fill()) {
      consume(buffer_.size());
      return;
    }
  }
}

void BatchReader::finish_input(TextBatch& last) {
  last.ends_input = true;
  last.digest = stream_->raw_digest();
  last.input_bytes = stream_->raw_bytes();
  const PrepareInput& input = inputs_[static_cast<std::size_t>(position_.input)];
  if (input.bytes >= 0 && input.bytes != last.input_bytes) {
    config_error("{}: the file changed from {} to {} bytes while it was read", input.path, input.bytes,
                 last.input_bytes);
  }
  raw_before_ += last.input_bytes;
  stream_.reset();
  position_ = {position_.input + 1, 0, 0};
  last.end = position_;
}

std::optional<TextBatch> BatchReader::next() {
  if (position_.input == static_cast<std::int64_t>(inputs_.size())) return std::nullopt;
  if (stream_ == nullptr) open();
  std::size_t scanned = 0;
  for (;;) {
    if (buffer_.size() >= kChunk) {
      if (const std::size_t end = rule_.last_end(buffer_, scanned); end > 0) return batch(end);
      scanned = buffer_.size();
    }
    if (buffer_.size() > max_record()) {
      discard_record();
      TextBatch skipped = batch(0);
      skipped.oversized = true;
      return skipped;
    }
    if (!fill()) {
      constexpr std::int64_t kMark = 3;  // a file of nothing but a byte order mark is empty, too
      const bool is_document = rule_.format == InputFormat::text && rule_.split == TextSplit::file;
      const bool empty = is_document && buffer_.empty() && position_.offset <= kMark;
      TextBatch last = batch(buffer_.size());
      last.empty_document = empty;
      finish_input(last);
      return last;
    }
  }
}

}  // namespace weft
