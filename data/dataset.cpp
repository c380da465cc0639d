#include "data/dataset.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <numeric>

#include "autograd/check.h"
#include "data/storage/crc32c.h"
#include "data/storage/file.h"
#include "data/storage/sha256.h"

namespace weft {

namespace {

constexpr std::uint64_t kMaxManifestBytes = std::uint64_t{256} << 20;

std::int64_t blocks_of(std::int64_t entries) {
  return (entries + kChecksumBlock - 1) / kChecksumBlock;
}

struct Range {
  std::string name;
  std::int64_t offset = 0;
  std::int64_t bytes = 0;
};

// Every HDF5 dataset of the shard lies inside the file and apart from the others.
void check_ranges(const DatasetManifest& manifest, const DatasetShard& shard, const std::string& path) {
  const std::int64_t token_blocks = blocks_of(shard.n_tokens);
  const std::int64_t offset_blocks = blocks_of(shard.n_docs + 1);
  std::vector<Range> ranges = {{"tokens", 0, shard.n_tokens * manifest.token_bytes},
                               {"doc_offsets", 0, (shard.n_docs + 1) * 8},
                               {"doc_source", 0, shard.n_docs * 2},
                               {"doc_bytes", 0, shard.n_docs * 4},
                               {"crc/tokens", 0, token_blocks * 4},
                               {"crc/doc_offsets", 0, offset_blocks * 4}};
  for (Range& range : ranges) {
    const auto found = shard.offsets.find(range.name);
    if (found == shard.offsets.end()) config_error("{}: dataset.json has no offset of /{}", path, range.name);
    range.offset = found->second;
    if (range.offset > shard.bytes || range.bytes > shard.bytes - range.offset) {
      config_error("{}: dataset.json places /{} at bytes [{}, {}), but the file has {}", path, range.name, range.offset,
                   range.offset + range.bytes, shard.bytes);
    }
  }
  std::stable_sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) { return a.offset < b.offset; });
  for (std::size_t i = 1; i < ranges.size(); ++i) {
    if (ranges[i - 1].offset + ranges[i - 1].bytes > ranges[i].offset) {
      config_error("{}: dataset.json places /{} and /{} on the same bytes", path, ranges[i - 1].name, ranges[i].name);
    }
  }
}

template <class T>
std::vector<T> read_array(const InputFile& file, std::int64_t offset, std::int64_t count) {
  std::vector<T> values(static_cast<std::size_t>(count));
  file.read_at(static_cast<std::uint64_t>(offset), std::as_writable_bytes(std::span(values)));
  return values;
}

// Widens ids and returns the largest.
template <class Id>
std::uint32_t widen(const std::byte* stored, std::span<std::int32_t> tokens) {
  std::uint32_t largest = 0;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    Id id = 0;
    std::memcpy(&id, stored + i * sizeof(Id), sizeof(Id));
    largest = std::max(largest, static_cast<std::uint32_t>(id));
    tokens[i] = static_cast<std::int32_t>(id);
  }
  return largest;
}

}  // namespace

struct Dataset::Shard {
  Shard(const std::string& path, const DatasetShard& entry) : file(path), info(entry) {}

  InputFile file;
  const DatasetShard& info;
  std::int64_t first_token = 0;
  std::int64_t tokens_offset = 0;
  std::vector<std::uint32_t> checksums;                   // of token blocks
  std::unique_ptr<std::atomic<std::uint64_t>[]> checked;  // one bit a block
};

Dataset::Dataset(const std::string& folder) : folder_(folder) {
  namespace fs = std::filesystem;
  std::error_code error;
  const auto status = fs::status(folder, error);
  if (!fs::exists(status)) {
    config_error("dataset {}: no such folder; 'weft prepare --out {} INPUT...' makes one", folder, folder);
  }
  if (!fs::is_directory(status)) {
    config_error("dataset {}: not a folder; expected one that 'weft prepare' wrote", folder);
  }
  const std::string manifest_path = (fs::path(folder) / "dataset.json").string();
  if (!fs::exists(manifest_path, error)) {
    config_error("dataset {}: the folder has no dataset.json, so it is not a weft dataset", folder);
  }
  const std::string text = read_small_file(manifest_path, kMaxManifestBytes);
  manifest_ = manifest_from_json(text, manifest_path);
  digest_ = hex(sha256(text));

  doc_offsets_.push_back(0);
  for (const DatasetShard& entry : manifest_.shards) {
    const std::string path = (fs::path(folder) / entry.file).string();
    if (!fs::exists(path, error)) config_error("{}: the shard is missing, dataset.json lists it", path);
    shards_.push_back(std::make_unique<Shard>(path, entry));
    open_shard(*shards_.back());
  }
}

Dataset::~Dataset() = default;

void Dataset::open_shard(Shard& shard) {
  const DatasetShard& info = shard.info;
  const std::string path = shard.file.path().string();
  if (shard.file.size() != static_cast<std::uint64_t>(info.bytes)) {
    config_error("{}: {} bytes, dataset.json says {}; the file is {}: copy or prepare the dataset again", path,
                 shard.file.size(), info.bytes,
                 shard.file.size() < static_cast<std::uint64_t>(info.bytes) ? "truncated" : "not the one it was");
  }
  check_ranges(manifest_, info, path);
  shard.first_token = doc_offsets_.back();
  shard.tokens_offset = info.offsets.at("tokens");
  const std::int64_t blocks = blocks_of(info.n_tokens);
  shard.checksums = read_array<std::uint32_t>(shard.file, info.offsets.at("crc/tokens"), blocks);
  shard.checked = std::make_unique<std::atomic<std::uint64_t>[]>(static_cast<std::size_t>((blocks + 63) / 64));

  const auto offsets = read_array<std::uint64_t>(shard.file, info.offsets.at("doc_offsets"), info.n_docs + 1);
  const auto sums =
      read_array<std::uint32_t>(shard.file, info.offsets.at("crc/doc_offsets"), blocks_of(info.n_docs + 1));
  const auto bytes = std::as_bytes(std::span(offsets));
  for (std::size_t block = 0; block < sums.size(); ++block) {
    constexpr std::size_t kBytes = kChecksumBlock * 8;
    if (crc32c(bytes.subspan(block * kBytes, std::min(kBytes, bytes.size() - block * kBytes))) != sums[block]) {
      config_error("{}: block {} of /doc_offsets does not match its checksum; the file is damaged", path, block);
    }
  }
  const bool ends_right = offsets.front() == 0 && offsets.back() == static_cast<std::uint64_t>(info.n_tokens);
  if (!ends_right) config_error("{}: /doc_offsets does not run from 0 to {}", path, info.n_tokens);
  doc_offsets_.reserve(doc_offsets_.size() + offsets.size() - 1);
  for (std::size_t d = 1; d < offsets.size(); ++d) {
    if (offsets[d] <= offsets[d - 1] || offsets[d] > offsets.back()) {
      config_error("{}: /doc_offsets does not increase at document {}", path, d - 1);
    }
    doc_offsets_.push_back(shard.first_token + static_cast<std::int64_t>(offsets[d]));
  }
}

TokenizerIdentity Dataset::tokenizer_identity() const {
  return {manifest_.tokenizer_name, manifest_.tokenizer_fingerprint, manifest_.bos_id, manifest_.eos_id};
}

TokenizerBundle Dataset::tokenizer() const {
  std::vector<TokenizerFile> files;
  for (const DatasetTokenizerFile& entry : manifest_.tokenizer_files) {
    const std::string path = (std::filesystem::path(folder_) / entry.name).string();
    std::error_code error;
    if (!std::filesystem::exists(path, error)) {
      config_error("{}: the tokenizer's file is missing, dataset.json lists it", path);
    }
    std::string content = read_small_file(path, std::uint64_t{64} << 20);
    if (const std::string digest = hex(sha256(content)); digest != entry.sha256) {
      config_error("{}: its SHA-256 is {}, dataset.json says {}; copy the file again", path, digest, entry.sha256);
    }
    files.push_back({entry.name, std::move(content)});
  }
  return restore_tokenizer(tokenizer_identity(), std::move(files), folder_);
}

std::int32_t Dataset::padding_id() const {
  const std::int64_t id = manifest_.eos_id >= 0 ? manifest_.eos_id : std::max<std::int64_t>(manifest_.bos_id, 0);
  return static_cast<std::int32_t>(id);
}

std::int64_t Dataset::doc_of(std::int64_t token) const {
  WEFT_CHECK(token >= 0 && token < n_tokens(), "token {} of {}", token, n_tokens());
  return std::upper_bound(doc_offsets_.begin(), doc_offsets_.end(), token) - doc_offsets_.begin() - 1;
}

void Dataset::read(std::int64_t begin, std::span<std::int32_t> tokens) const {
  WEFT_CHECK(begin >= 0 && begin <= n_tokens() && static_cast<std::int64_t>(tokens.size()) <= n_tokens() - begin,
             "tokens [{}, {}) of {}", begin, begin + static_cast<std::int64_t>(tokens.size()), n_tokens());
  auto shard = std::upper_bound(shards_.begin(), shards_.end(), begin,
                                [](std::int64_t at, const auto& candidate) { return at < candidate->first_token; });
  --shard;
  while (!tokens.empty()) {
    const std::int64_t local = begin - (*shard)->first_token;
    const auto n =
        static_cast<std::size_t>(std::min(static_cast<std::int64_t>(tokens.size()), (*shard)->info.n_tokens - local));
    read_from(**shard, local, tokens.first(n));
    tokens = tokens.subspan(n);
    begin += static_cast<std::int64_t>(n);
    ++shard;
  }
}

void Dataset::read_from(const Shard& shard, std::int64_t begin, std::span<std::int32_t> tokens) const {
  const std::int64_t end = begin + static_cast<std::int64_t>(tokens.size());
  for (std::int64_t block = begin / kChecksumBlock; block * kChecksumBlock < end; ++block) {
    const std::uint64_t bit = std::uint64_t{1} << (block % 64);
    std::atomic<std::uint64_t>& word = shard.checked[static_cast<std::size_t>(block / 64)];
    if ((word.load(std::memory_order_relaxed) & bit) == 0) {
      check_block(shard, block);
      word.fetch_or(bit, std::memory_order_relaxed);
    }
  }
  thread_local std::vector<std::byte> stored;
  const auto width = static_cast<std::size_t>(manifest_.token_bytes);
  stored.resize(tokens.size() * width);
  shard.file.read_at(static_cast<std::uint64_t>(shard.tokens_offset) + static_cast<std::uint64_t>(begin) * width,
                     stored);
  const std::uint32_t largest =
      width == 2 ? widen<std::uint16_t>(stored.data(), tokens) : widen<std::uint32_t>(stored.data(), tokens);
  if (largest < static_cast<std::uint64_t>(vocab_size())) return;
  const auto bad = std::find_if(tokens.begin(), tokens.end(), [&](std::int32_t id) {
    return static_cast<std::uint32_t>(id) >= static_cast<std::uint64_t>(vocab_size());
  });
  const std::int64_t index = begin + (bad - tokens.begin());
  config_error("{}: token {} (block {}) is {}, outside the vocabulary of {} ids; prepare the dataset again",
               shard.file.path().string(), index, index / kChecksumBlock, static_cast<std::uint32_t>(*bad),
               vocab_size());
}

void Dataset::check_block(const Shard& shard, std::int64_t block) const {
  thread_local std::vector<std::byte> stored;
  const std::int64_t first = block * kChecksumBlock;
  const std::int64_t count = std::min(kChecksumBlock, shard.info.n_tokens - first);
  stored.resize(static_cast<std::size_t>(count * manifest_.token_bytes));
  shard.file.read_at(static_cast<std::uint64_t>(shard.tokens_offset + first * manifest_.token_bytes), stored);
  if (crc32c(stored) != shard.checksums[static_cast<std::size_t>(block)]) {
    config_error(
        "{}: tokens [{}, {}) (block {}) do not match their checksum; the file is damaged: copy or prepare the "
        "dataset again",
        shard.file.path().string(), first, first + count, block);
  }
}

std::string describe_dataset(const std::string& folder) {
  const Dataset dataset(folder);
  const DatasetManifest& m = dataset.manifest();
  std::string text = fmt::format("dataset    {}\ndigest     {}\n", folder, dataset.digest());
  text += fmt::format("tokenizer  {} ({} ids, {} bytes a token stored)\n", shown(dataset.tokenizer_identity()),
                      m.vocab_size, m.token_bytes);
  for (const DatasetTokenizerFile& file : m.tokenizer_files) {
    text += fmt::format("           {}, {} bytes\n", file.name, file.bytes);
  }
  text += fmt::format("tokens     {}\ndocuments  {}\ntext       {} bytes\n", m.n_tokens, m.n_docs, m.text_bytes);
  text += fmt::format("shards     {}, {} bytes\n", m.shards.size(),
                      std::accumulate(m.shards.begin(), m.shards.end(), std::int64_t{0},
                                      [](std::int64_t sum, const DatasetShard& shard) { return sum + shard.bytes; }));
  for (const auto& [key, value] : m.options) text += fmt::format("option     {} = {}\n", key, value);
  constexpr std::size_t kShown = 20;
  for (std::size_t i = 0; i < std::min(m.sources.size(), kShown); ++i) {
    const DatasetSource& source = m.sources[i];
    text += fmt::format("source     {}: {} documents, {} tokens\n", source.name, source.documents, source.tokens);
  }
  if (m.sources.size() > kShown) text += fmt::format("source     ... and {} more\n", m.sources.size() - kShown);
  for (const auto& [reason, count] : m.skipped) {
    if (count > 0) text += fmt::format("skipped    {}: {}\n", reason, count);
  }
  text.pop_back();
  return text;
}

}  // namespace weft
