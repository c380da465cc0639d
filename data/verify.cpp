#include <algorithm>
#include <filesystem>
#include <numeric>

#include "autograd/check.h"
#include "data/dataset.h"
#include "data/storage/crc32c.h"
#include "data/storage/file.h"
#include "data/storage/hdf5.h"
#include "data/storage/sha256.h"

namespace weft {

namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kReadTokens = std::int64_t{1} << 20;

// The arrays of a shard, their types, and how many elements each must have.
struct ArrayShape {
  const char* name;
  Hdf5Type type;
  std::int64_t count;  // -1: any
};

std::vector<ArrayShape> arrays_of(std::int64_t n_tokens, std::int64_t n_docs, std::int64_t token_bytes) {
  const auto blocks = [](std::int64_t n) { return (n + kChecksumBlock - 1) / kChecksumBlock; };
  return {{"tokens", token_bytes == 2 ? Hdf5Type::u16 : Hdf5Type::u32, n_tokens},
          {"doc_offsets", Hdf5Type::u64, n_docs + 1},
          {"doc_source", Hdf5Type::u16, n_docs},
          {"doc_bytes", Hdf5Type::u32, n_docs},
          {"crc/tokens", Hdf5Type::u32, blocks(n_tokens)},
          {"crc/doc_offsets", Hdf5Type::u32, blocks(n_docs + 1)},
          {"sources", Hdf5Type::text, -1}};
}

// What a shard says of itself, checked for consistency.
struct ShardContent {
  DatasetManifest identity;  // tokenizer, token width, prepare digest
  DatasetShard entry;        // without the SHA-256
  std::vector<std::string> sources;
  std::vector<std::int64_t> source_documents;
  std::vector<std::int64_t> source_tokens;
  std::int64_t text_bytes = 0;
};

template <class T>
std::vector<T> read_all(const Hdf5Reader& file, const std::string& name, std::int64_t count) {
  std::vector<T> values(static_cast<std::size_t>(count));
  file.read(name, 0, std::as_writable_bytes(std::span(values)));
  return values;
}

std::int64_t count_attribute(const Hdf5Reader& file, const char* name, const std::string& path) {
  const std::uint64_t value = file.uint64_attribute("/", name);
  if (value == 0 || value > file.file_bytes()) config_error("{}: attribute {} is {}", path, name, value);
  return static_cast<std::int64_t>(value);
}

void read_documents(const Hdf5Reader& file, const std::string& path, ShardContent& content) {
  const auto offsets = read_all<std::uint64_t>(file, "/doc_offsets", content.entry.n_docs + 1);
  const auto sources = read_all<std::uint16_t>(file, "/doc_source", content.entry.n_docs);
  const auto bytes = read_all<std::uint32_t>(file, "/doc_bytes", content.entry.n_docs);
  content.sources = file.read_texts("/sources");
  content.source_documents.resize(content.sources.size());
  content.source_tokens.resize(content.sources.size());
  for (std::size_t d = 0; d < sources.size(); ++d) {
    if (sources[d] >= content.sources.size()) {
      config_error("{}: document {} is from source {}, there are {}", path, d, sources[d], content.sources.size());
    }
    if (offsets[d + 1] <= offsets[d]) config_error("{}: /doc_offsets does not increase at document {}", path, d);
    ++content.source_documents[sources[d]];
    content.source_tokens[sources[d]] += static_cast<std::int64_t>(offsets[d + 1] - offsets[d]);
    content.text_bytes += bytes[d];
  }
}

ShardContent read_shard(const std::string& path) {
  const Hdf5Reader file(path);
  if (!file.has_attribute("/", "format") || file.text_attribute("/", "format") != "weft-tokens") {
    config_error("{}: not a shard of a weft dataset (attribute format is not \"weft-tokens\")", path);
  }
  if (const std::uint32_t version = file.uint32_attribute("/", "version"); version != kDatasetShardVersion) {
    config_error("{}: dataset version {}, this build reads version {}", path, version, kDatasetShardVersion);
  }
  ShardContent content;
  DatasetManifest& identity = content.identity;
  identity.tokenizer_name = file.text_attribute("/", "tokenizer");
  identity.tokenizer_fingerprint = hex(file.bytes_attribute("/", "tokenizer_fingerprint"));
  identity.vocab_size = file.int64_attribute("/", "vocab_size");
  identity.bos_id = file.int64_attribute("/", "bos_id");
  identity.eos_id = file.int64_attribute("/", "eos_id");
  identity.eos_terminated = file.uint32_attribute("/", "doc_terminator") == 1;
  identity.prepare_digest = hex(file.bytes_attribute("/", "prepare_digest"));
  content.entry.file = fs::path(path).filename().string();
  content.entry.bytes = static_cast<std::int64_t>(file.file_bytes());
  content.entry.n_tokens = count_attribute(file, "n_tokens", path);
  content.entry.n_docs = count_attribute(file, "n_docs", path);
  const auto tokens = file.datasets().find("/tokens");
  identity.token_bytes = tokens != file.datasets().end() && tokens->second.type == Hdf5Type::u32 ? 4 : 2;
  for (const ArrayShape& array : arrays_of(content.entry.n_tokens, content.entry.n_docs, identity.token_bytes)) {
    const std::string name = std::string("/") + array.name;
    const Hdf5Dataset& found = file.dataset(name, array.type);
    const bool right =
        found.dims.size() == 1 && (array.count < 0 || found.dims[0] == static_cast<std::uint64_t>(array.count));
    if (!right)
      config_error("{}: {} has {} elements, expected {}", path, name, fmt::join(found.dims, " x "), array.count);
    content.entry.offsets[array.name] = static_cast<std::int64_t>(found.offset);
  }
  read_documents(file, path, content);
  return content;
}

template <class T>
void expect_equal(const std::string& path, std::string_view what, const T& in_shard, const T& in_manifest) {
  if (in_shard != in_manifest) config_error("{}: {} is {}, dataset.json says {}", path, what, in_shard, in_manifest);
}

void compare(const std::string& path, const ShardContent& shard, const DatasetManifest& manifest,
             const DatasetShard& entry) {
  expect_equal(path, "n_tokens", shard.entry.n_tokens, entry.n_tokens);
  expect_equal(path, "n_docs", shard.entry.n_docs, entry.n_docs);
  expect_equal(path, "the token width", shard.identity.token_bytes, manifest.token_bytes);
  expect_equal(path, "vocab_size", shard.identity.vocab_size, manifest.vocab_size);
  expect_equal(path, "bos_id", shard.identity.bos_id, manifest.bos_id);
  expect_equal(path, "eos_id", shard.identity.eos_id, manifest.eos_id);
  expect_equal(path, "doc_terminator", shard.identity.eos_terminated, manifest.eos_terminated);
  expect_equal(path, "tokenizer_fingerprint", shard.identity.tokenizer_fingerprint, manifest.tokenizer_fingerprint);
  expect_equal(path, "prepare_digest", shard.identity.prepare_digest, manifest.prepare_digest);
  for (const auto& [name, offset] : shard.entry.offsets) {
    const auto found = entry.offsets.find(name);
    if (found == entry.offsets.end()) config_error("{}: dataset.json has no offset of /{}", path, name);
    expect_equal(path, fmt::format("the offset of /{}", name), offset, found->second);
  }
}

// The library's complaints about a file's content are about bad input here.
template <class F>
auto as_input(F&& read) {
  try {
    return read();
  } catch (const Error& error) {
    throw Error(ExitCode::config, error.what());
  }
}

// For a rebuilt manifest: the files that lie in the folder, if they are of the tokenizer that the shards name.
void take_tokenizer_files(const std::string& folder, DatasetManifest& manifest) {
  if (manifest.tokenizer_name == "byte") return;
  const std::string path = (fs::path(folder) / manifest.tokenizer_name).string();
  std::error_code error;
  if (!is_tokenizer_file(manifest.tokenizer_name) || !fs::exists(path, error)) {
    config_error("{}: the file of the tokenizer is missing; its shards name it", path);
  }
  TokenizerBundle bundle = open_tokenizer(path);
  for (const TokenizerFile& file : bundle.files) {
    manifest.tokenizer_files.push_back(
        {file.name, static_cast<std::int64_t>(file.content.size()), hex(sha256(file.content))});
  }
  restore_tokenizer({manifest.tokenizer_name, manifest.tokenizer_fingerprint, manifest.bos_id, manifest.eos_id},
                    std::move(bundle.files), folder);
}

}  // namespace

void verify_dataset(const std::string& folder) {
  const Dataset dataset(folder);
  dataset.tokenizer();
  std::int64_t text_bytes = 0;
  for (const DatasetShard& entry : dataset.manifest().shards) {
    const std::string path = (fs::path(folder) / entry.file).string();
    if (const std::string digest = hex(sha256_file(path)); digest != entry.sha256) {
      // Naming the damaged block says more than the digest of the file, if it is in the tokens.
      std::vector<std::int32_t> tokens;
      for (std::int64_t at = 0; at < dataset.n_tokens(); at += kReadTokens) {
        tokens.resize(static_cast<std::size_t>(std::min(kReadTokens, dataset.n_tokens() - at)));
        dataset.read(at, tokens);
      }
      config_error("{}: its SHA-256 is {}, dataset.json says {}; the file is damaged", path, digest, entry.sha256);
    }
    const ShardContent shard = as_input([&] { return read_shard(path); });
    compare(path, shard, dataset.manifest(), entry);
    text_bytes += shard.text_bytes;
  }
  expect_equal(folder, "the length of its text", text_bytes, dataset.manifest().text_bytes);
  std::vector<std::int32_t> tokens;
  for (std::int64_t at = 0; at < dataset.n_tokens(); at += kReadTokens) {
    tokens.resize(static_cast<std::size_t>(std::min(kReadTokens, dataset.n_tokens() - at)));
    dataset.read(at, tokens);
  }
}

DatasetManifest index_dataset(const std::string& folder) {
  const fs::path target = fs::path(folder) / "dataset.json";
  std::error_code error;
  if (fs::exists(target, error)) config_error("{} exists; move it away to build a new one", target.string());
  std::vector<std::string> paths;
  for (fs::directory_iterator at(folder, error), end; !error && at != end; at.increment(error)) {
    const std::string name = at->path().filename().string();
    if (name.starts_with("tokens-") && name.ends_with(".h5")) paths.push_back(at->path().string());
  }
  if (error) config_error("dataset {}: {}", folder, error.message());
  if (paths.empty()) config_error("dataset {}: the folder has no shards (tokens-*.h5)", folder);
  std::sort(paths.begin(), paths.end());

  DatasetManifest manifest;
  for (const std::string& path : paths) {
    ShardContent shard = as_input([&] { return read_shard(path); });
    if (manifest.shards.empty()) {
      manifest = shard.identity;
      for (const std::string& name : shard.sources) manifest.sources.push_back({name, "", 0, 0, 0});
    } else {
      compare(path, {shard.identity, {}, {}, {}, {}, 0}, manifest, {});
      if (shard.sources.size() != manifest.sources.size()) {
        config_error("{}: {} sources, {} has {}", path, shard.sources.size(), paths.front(), manifest.sources.size());
      }
    }
    for (std::size_t s = 0; s < shard.sources.size(); ++s) {
      manifest.sources[s].documents += shard.source_documents[s];
      manifest.sources[s].tokens += shard.source_tokens[s];
    }
    manifest.n_tokens += shard.entry.n_tokens;
    manifest.n_docs += shard.entry.n_docs;
    manifest.text_bytes += shard.text_bytes;
    shard.entry.sha256 = hex(sha256_file(path));
    manifest.shards.push_back(shard.entry);
  }
  take_tokenizer_files(folder, manifest);
  manifest.program = kDatasetWriter;
  const std::string text = manifest_to_json(manifest);
  manifest_from_json(text, target.string());
  write_file_atomically(target, text);
  return manifest;
}

}  // namespace weft
