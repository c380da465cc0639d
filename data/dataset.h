// A dataset of token documents: a folder with dataset.json and HDF5 shards, read by position without the HDF5 library.
//
// Errors of code config: the dataset is missing, foreign, truncated or damaged (checksum, token out of range); the
// message names the shard, the token and the block. Errors of code storage: the system could not read.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "data/manifest.h"
#include "data/tokenizers/tokenizer_files.h"

namespace weft {

// Documents are numbered 0 .. n_docs-1 and tokens 0 .. n_tokens-1 over all shards in manifest order. Reading is
// thread-safe. Document offsets are in memory (8 bytes a document); tokens are read when asked for.
class Dataset {
 public:
  // Checks the manifest, the sizes of the shards and the document offsets; does not read tokens.
  explicit Dataset(const std::string& folder);
  ~Dataset();
  Dataset(const Dataset&) = delete;
  Dataset& operator=(const Dataset&) = delete;

  const std::string& folder() const { return folder_; }
  const DatasetManifest& manifest() const { return manifest_; }
  // SHA-256 of dataset.json, 64 hexadecimal digits.
  const std::string& digest() const { return digest_; }

  std::int64_t n_tokens() const { return manifest_.n_tokens; }
  std::int64_t n_docs() const { return manifest_.n_docs; }
  std::int64_t vocab_size() const { return manifest_.vocab_size; }
  // EOS, else BOS, else 0: what fills padding.
  std::int32_t padding_id() const;

  TokenizerIdentity tokenizer_identity() const;
  // The tokenizer that it was prepared with, from the files in its folder. Error (config) if they are missing, damaged
  // or another's.
  TokenizerBundle tokenizer() const;

  // n_docs + 1 token positions: document d is [offsets[d], offsets[d + 1]).
  std::span<const std::int64_t> doc_offsets() const { return doc_offsets_; }
  // The document that holds `token`.
  std::int64_t doc_of(std::int64_t token) const;

  // Tokens [begin, begin + tokens.size()). A block is checked against its checksum when it is first touched, and every
  // id against the vocabulary.
  void read(std::int64_t begin, std::span<std::int32_t> tokens) const;

 private:
  struct Shard;
  void open_shard(Shard& shard);
  void read_from(const Shard& shard, std::int64_t begin, std::span<std::int32_t> tokens) const;
  void check_block(const Shard& shard, std::int64_t block) const;

  std::string folder_;
  DatasetManifest manifest_;
  std::string digest_;
  std::vector<std::unique_ptr<Shard>> shards_;
  std::vector<std::int64_t> doc_offsets_;
};

// Reads everything: SHA-256 of each shard and file of the tokenizer, every checksum, every id, and what the HDF5
// library says about types, shapes, offsets and attributes against the manifest. Throws at the first difference.
void verify_dataset(const std::string& folder);

// Rebuilds dataset.json from the shards, for a dataset that lost it; what only the manifest knew (digests of the input
// files, skip counts) stays empty. It is an error if dataset.json exists.
DatasetManifest index_dataset(const std::string& folder);

// A few lines for people (no line break at the end): counts, tokenizer, sources, shards, skipped documents. Checks what
// opening checks.
std::string describe_dataset(const std::string& folder);

}  // namespace weft
