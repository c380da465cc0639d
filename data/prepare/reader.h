// Cuts the inputs, in order, into batches of whole records for the encoders.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/prepare/documents.h"
#include "data/prepare/input.h"

namespace weft {

// A place between two records: bytes of (unpacked) text of an input, and the CRC-32C of those bytes.
struct ReadPosition {
  std::int64_t input = 0;
  std::int64_t offset = 0;
  std::uint32_t crc = 0;
};

struct TextBatch {
  std::int64_t sequence = 0;
  std::string text;             // whole records of one input
  bool oversized = false;       // stands for one record that was too large to read; the text is empty
  bool empty_document = false;  // the input is a document without any text
  ReadPosition end;             // where reading goes on after this batch
  std::int64_t input = 0;
  std::int64_t raw_bytes = 0;  // of all input files, read so far
  // In the last batch of an input:
  bool ends_input = false;
  Sha256::Digest digest{};
  std::int64_t input_bytes = 0;
};

class BatchReader {
 public:
  // Starts at `position`. Text before it is read again and must be what it was: error (config) otherwise.
  BatchReader(const PrepareOptions& options, const std::vector<PrepareInput>& inputs, ReadPosition position);

  std::optional<TextBatch> next();
  static RecordRule rule_of(const PrepareOptions& options, const PrepareInput& input);

 private:
  void open();
  void skip_to_position();
  bool fill();
  void consume(std::size_t bytes);
  TextBatch batch(std::size_t bytes);
  void discard_record();
  void finish_input(TextBatch& last);
  std::size_t max_record() const;

  const PrepareOptions& options_;
  const std::vector<PrepareInput>& inputs_;
  ReadPosition position_;
  std::int64_t sequence_ = 0;
  std::int64_t raw_before_ = 0;  // bytes of the inputs before this one
  std::unique_ptr<TextStream> stream_;
  RecordRule rule_;
  std::string buffer_;  // text from position_ on
  bool at_end_ = false;
};

}  // namespace weft
