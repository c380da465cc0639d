// Input files of prepare: which ones, in which order, and their text as a stream of bytes.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "data/prepare/prepare.h"
#include "data/storage/sha256.h"

namespace weft {

struct PrepareInput {
  std::string path;  // "-": standard input
  std::string name;  // base name as valid UTF-8 of at most 255 bytes
  InputFormat format = InputFormat::text;
  std::int64_t bytes = 0;        // -1 for standard input
  std::int64_t modified_ns = 0;  // since the epoch
};

// Expands folders and glob patterns and orders files by the bytes of their paths. Error (config) for inputs that do not
// exist, that are parquet, that are packed otherwise than their names say, or that are too many.
std::vector<PrepareInput> expand_inputs(const PrepareOptions& options);

// Error (config) if the file is named *.gz or *.zst and does not begin as such data do, or if it begins as a packed
// form that cannot be read (xz, bzip2, lz4, zip).
void check_packing(const std::string& path);

// The text of one input; gzip and zstd are recognised by their first bytes, whatever the name, and unpacked. Error
// (config) for truncated or damaged packed data, for packed forms that cannot be read, and beyond the expansion limit;
// Error (storage) if the system cannot read.
class TextStream {
 public:
  TextStream(const PrepareInput& input, std::int64_t max_expansion);
  ~TextStream();

  // Reads up to `bytes.size()` bytes; 0 only at the end.
  std::size_t read(std::span<char> bytes);
  // Bytes of the file itself so far, and their SHA-256 once read() has returned 0.
  std::int64_t raw_bytes() const;
  Sha256::Digest raw_digest();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace weft
