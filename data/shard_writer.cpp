#include "data/shard_writer.h"

#include <algorithm>
#include <filesystem>

#include "autograd/check.h"
#include "data/storage/crc32c.h"
#include "data/storage/file.h"
#include "data/storage/sha256.h"

namespace weft {

namespace {

constexpr std::size_t kNameLength = 256;
constexpr std::size_t kWriteBytes = std::size_t{4} << 20;  // a multiple of a checksum block of either width

std::vector<std::uint8_t> bytes_of_hex(const std::string& text) {
  std::vector<std::uint8_t> bytes;
  for (std::size_t i = 0; i + 1 < text.size(); i += 2) {
    bytes.push_back(static_cast<std::uint8_t>(std::stoi(text.substr(i, 2), nullptr, 16)));
  }
  return bytes;
}

template <class T>
void write_array(Hdf5Writer& file, const std::string& name, Hdf5Type type, const std::vector<T>& values) {
  const std::uint64_t count = values.size();
  file.write_dataset(name, type, std::span(&count, 1), std::as_bytes(std::span(values)));
}

}  // namespace

ShardWriter::ShardWriter(const std::string& folder, const std::string& name, const DatasetManifest& manifest,
                         ShardDocuments documents)
    : path_((std::filesystem::path(folder) / name).string()),
      token_bytes_(static_cast<std::size_t>(manifest.token_bytes)),
      documents_(std::move(documents)),
      file_(path_) {
  entry_.file = name;
  entry_.n_docs = static_cast<std::int64_t>(documents_.sources.size());
  entry_.n_tokens = static_cast<std::int64_t>(documents_.offsets.back());
  file_.create_dataset("/tokens", token_bytes_ == 2 ? Hdf5Type::u16 : Hdf5Type::u32, documents_.offsets.back());
  write_array(file_, "/doc_offsets", Hdf5Type::u64, documents_.offsets);
  write_array(file_, "/doc_source", Hdf5Type::u16, documents_.sources);
  write_array(file_, "/doc_bytes", Hdf5Type::u32, documents_.bytes);
  std::vector<std::string> names;
  for (const DatasetSource& source : manifest.sources) names.push_back(source.name);
  file_.write_texts("/sources", kNameLength, names);

  file_.set_attribute("/", "format", std::string_view("weft-tokens"));
  file_.set_attribute("/", "version", static_cast<std::uint32_t>(kDatasetShardVersion));
  file_.set_attribute("/", "tokenizer", std::string_view(manifest.tokenizer_name));
  const auto fingerprint = bytes_of_hex(manifest.tokenizer_fingerprint);
  file_.set_attribute("/", "tokenizer_fingerprint", std::span<const std::uint8_t>(fingerprint));
  file_.set_attribute("/", "vocab_size", manifest.vocab_size);
  file_.set_attribute("/", "bos_id", manifest.bos_id);
  file_.set_attribute("/", "eos_id", manifest.eos_id);
  file_.set_attribute("/", "n_tokens", static_cast<std::uint64_t>(entry_.n_tokens));
  file_.set_attribute("/", "n_docs", static_cast<std::uint64_t>(entry_.n_docs));
  file_.set_attribute("/", "doc_terminator", static_cast<std::uint32_t>(manifest.eos_terminated ? 1 : 0));
  const auto digest = bytes_of_hex(manifest.prepare_digest);
  file_.set_attribute("/", "prepare_digest", std::span<const std::uint8_t>(digest));
  pending_.reserve(2 * kWriteBytes);
}

void ShardWriter::append(std::span<const std::byte> tokens) {
  while (!tokens.empty()) {
    const std::size_t n = std::min(tokens.size(), kWriteBytes);
    pending_.insert(pending_.end(), tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(n));
    tokens = tokens.subspan(n);
    if (pending_.size() >= kWriteBytes) flush(false);
  }
}

void ShardWriter::flush(bool all) {
  const std::size_t block = static_cast<std::size_t>(kChecksumBlock) * token_bytes_;
  const std::size_t whole = all ? pending_.size() : pending_.size() / block * block;
  for (std::size_t at = 0; at < whole; at += block) {
    checksums_.push_back(crc32c(std::span(pending_).subspan(at, std::min(block, whole - at))));
  }
  file_.write_range("/tokens", static_cast<std::uint64_t>(written_), std::span(pending_).first(whole));
  written_ += static_cast<std::int64_t>(whole / token_bytes_);
  pending_.erase(pending_.begin(), pending_.begin() + static_cast<std::ptrdiff_t>(whole));
}

DatasetShard ShardWriter::finish() {
  flush(true);
  WEFT_CHECK(written_ == entry_.n_tokens, "shard {}: {} tokens of {}", path_, written_, entry_.n_tokens);
  write_array(file_, "/crc/tokens", Hdf5Type::u32, checksums_);
  const auto offsets = std::as_bytes(std::span(documents_.offsets));
  std::vector<std::uint32_t> sums;
  constexpr std::size_t kBlock = static_cast<std::size_t>(kChecksumBlock) * 8;
  for (std::size_t at = 0; at < offsets.size(); at += kBlock) {
    sums.push_back(crc32c(offsets.subspan(at, std::min(kBlock, offsets.size() - at))));
  }
  write_array(file_, "/crc/doc_offsets", Hdf5Type::u32, sums);
  for (const char* name :
       {"tokens", "doc_offsets", "doc_source", "doc_bytes", "sources", "crc/tokens", "crc/doc_offsets"}) {
    entry_.offsets[name] = static_cast<std::int64_t>(file_.dataset_offset(std::string("/") + name));
  }
  file_.close();
  fsync_file(path_);
  entry_.bytes = static_cast<std::int64_t>(std::filesystem::file_size(path_));
  entry_.sha256 = hex(sha256_file(path_));
  return entry_;
}

}  // namespace weft
