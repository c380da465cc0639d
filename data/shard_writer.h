// Writes one shard of a dataset: an HDF5 file that any HDF5 tool reads and whose arrays lie in one piece each.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "data/manifest.h"
#include "data/storage/hdf5.h"

namespace weft {

struct ShardDocuments {
  std::vector<std::uint64_t> offsets;  // [n_docs+1], first 0, strictly increasing
  std::vector<std::uint16_t> sources;  // [n_docs] index in the manifest's sources
  std::vector<std::uint32_t> bytes;    // [n_docs] of UTF-8 text
};

class ShardWriter {
 public:
  // Creates folder/name. `manifest` gives tokenizer, token width, sources and prepare digest.
  ShardWriter(const std::string& folder, const std::string& name, const DatasetManifest& manifest,
              ShardDocuments documents);

  // Tokens in order, as they are stored (2 or 4 bytes each, little-endian).
  void append(std::span<const std::byte> tokens);
  // After all tokens: writes the rest, makes the file durable and returns its entry in the manifest.
  DatasetShard finish();

 private:
  void flush(bool all);

  std::string path_;
  DatasetShard entry_;
  std::size_t token_bytes_;
  ShardDocuments documents_;
  Hdf5Writer file_;
  std::vector<std::byte> pending_;
  std::int64_t written_ = 0;  // tokens
  std::vector<std::uint32_t> checksums_;
};

}  // namespace weft
