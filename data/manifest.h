// dataset.json: what a dataset consists of. Canonical JSON, so that equal datasets have equal bytes; its SHA-256, the
// dataset digest, goes into checkpoints.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace weft {

// Of dataset.json: 2 with files of a tokenizer, 1 without, which is as it was before there were any. Both are read.
inline constexpr std::int64_t kDatasetVersion = 2;
inline constexpr std::int64_t kDatasetShardVersion = 1;
// Goes into manifests as the program that wrote them.
inline constexpr std::string_view kDatasetWriter = "weft 0.1.0";
// Entries (not bytes) of tokens and of document offsets that one checksum covers.
inline constexpr std::int64_t kChecksumBlock = 65536;

struct DatasetShard {
  std::string file;  // bare name
  std::int64_t bytes = 0;
  std::string sha256;
  std::int64_t n_tokens = 0;
  std::int64_t n_docs = 0;
  // Byte offset in the file of each HDF5 dataset, by its name without the leading slash ("tokens", "crc/tokens", ...).
  std::map<std::string, std::int64_t> offsets;
};

// A file of the tokenizer, which lies beside the shards.
struct DatasetTokenizerFile {
  std::string name;
  std::int64_t bytes = 0;
  std::string sha256;
};

struct DatasetSource {
  std::string name;    // base name of the input file
  std::string sha256;  // of the file's bytes; empty in a manifest rebuilt by index_dataset
  std::int64_t bytes = 0;
  std::int64_t documents = 0;  // that are in the dataset
  std::int64_t tokens = 0;
};

struct DatasetManifest {
  std::string tokenizer_name;
  std::string tokenizer_fingerprint;                  // 64 hexadecimal digits
  std::vector<DatasetTokenizerFile> tokenizer_files;  // none for "byte"
  std::int64_t vocab_size = 0;
  std::int64_t bos_id = -1;  // -1: none
  std::int64_t eos_id = -1;
  bool eos_terminated = true;    // each document ends with EOS
  std::int64_t token_bytes = 2;  // 2 or 4
  std::int64_t n_tokens = 0;
  std::int64_t n_docs = 0;
  std::int64_t text_bytes = 0;  // UTF-8 bytes of all documents
  std::vector<DatasetShard> shards;
  std::vector<DatasetSource> sources;
  std::map<std::string, std::int64_t> skipped;  // documents left out, by reason
  std::map<std::string, std::string> options;   // of prepare, as far as they decide the content
  std::string prepare_digest;                   // SHA-256 of the options
  std::string program;                          // what wrote it, e.g. "weft 0.1.0"
};

std::string manifest_to_json(const DatasetManifest& manifest);
// Checks format, version, keys, ranges, bare file names and that totals are the sums of the shards. Error (config) that
// names `source`.
DatasetManifest manifest_from_json(const std::string& text, const std::string& source);

}  // namespace weft
