// Temporary folders, hand-made datasets and error messages for the tests of data/.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "autograd/check.h"
#include "data/dataset.h"
#include "data/shard_writer.h"
#include "data/storage/file.h"
#include "data/tokenizers/byte_tokenizer.h"

namespace weft::data_test {

class TemporaryFolder {
 public:
  TemporaryFolder() : path_(std::filesystem::temp_directory_path() / ("weft-data-" + random_nonce())) {
    std::filesystem::create_directories(path_);
  }
  ~TemporaryFolder() {
    std::error_code error;
    std::filesystem::remove_all(path_, error);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

inline void write_text(const std::string& path, const std::string& text) {
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  std::ofstream(path, std::ios::binary) << text;
}

inline std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

inline void flip_bit(const std::string& path, std::int64_t byte, int bit = 0) {
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  file.seekg(byte);
  const char c = static_cast<char>(file.get() ^ (1 << bit));
  file.seekp(byte);
  file.put(c);
}

// The message of the Error that `f` throws, which must have this code.
template <class F>
std::string message_of(ExitCode code, F&& f) {
  try {
    f();
  } catch (const Error& error) {
    EXPECT_EQ(static_cast<int>(error.code()), static_cast<int>(code)) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "no error";
  return "";
}

using Documents = std::vector<std::vector<std::uint16_t>>;

// Documents of the byte vocabulary as they are (with or without EOS), at most `docs_per_shard` in a shard.
inline std::shared_ptr<const Dataset> make_dataset(const std::string& folder, const Documents& documents,
                                                   std::size_t docs_per_shard = 1u << 20) {
  std::filesystem::create_directories(folder);
  const ByteTokenizer tokenizer;
  DatasetManifest manifest;
  manifest.tokenizer_name = tokenizer.name();
  manifest.tokenizer_fingerprint = hex(tokenizer.fingerprint());
  manifest.vocab_size = tokenizer.vocab_size();
  manifest.eos_id = tokenizer.eos_id();
  manifest.prepare_digest = hex(sha256(folder));
  manifest.program = "test";
  manifest.sources.push_back({"test", "", 0, 0, 0});
  for (std::size_t first = 0; first < documents.size(); first += docs_per_shard) {
    const std::size_t last = std::min(documents.size(), first + docs_per_shard);
    ShardDocuments tables;
    tables.offsets.push_back(0);
    std::vector<std::uint16_t> tokens;
    for (std::size_t d = first; d < last; ++d) {
      tokens.insert(tokens.end(), documents[d].begin(), documents[d].end());
      tables.offsets.push_back(tokens.size());
      tables.sources.push_back(0);
      tables.bytes.push_back(static_cast<std::uint32_t>(documents[d].size() - 1));
      manifest.text_bytes += static_cast<std::int64_t>(documents[d].size()) - 1;
    }
    const std::string name = fmt::format("tokens-{:05}.h5", manifest.shards.size());
    ShardWriter writer(folder, name, manifest, tables);
    writer.append(std::as_bytes(std::span(tokens)));
    manifest.shards.push_back(writer.finish());
    manifest.n_tokens += manifest.shards.back().n_tokens;
    manifest.n_docs += manifest.shards.back().n_docs;
  }
  write_file_atomically(folder + "/dataset.json", manifest_to_json(manifest));
  return std::make_shared<const Dataset>(folder);
}

// `count` documents of lengths 1 .. longest (with EOS), ids counting up so that every token tells where it is from.
inline Documents counting_documents(std::size_t count, std::size_t longest) {
  Documents documents;
  std::uint64_t state = 12345;
  std::uint16_t next = 0;
  for (std::size_t d = 0; d < count; ++d) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    std::vector<std::uint16_t> document((state >> 33) % longest);
    for (std::uint16_t& id : document) id = next++ % 256;
    document.push_back(ByteTokenizer::kEos);
    documents.push_back(std::move(document));
  }
  return documents;
}

}  // namespace weft::data_test
