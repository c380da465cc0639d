#include "data/manifest.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "autograd/check.h"
#include "data/storage/json.h"
#include "data/tokenizers/tokenizer_files.h"

namespace weft {

namespace {

using nlohmann::json;

// Leaves room to multiply by the bytes of an element and to add up.
constexpr std::int64_t kMaxCount = std::int64_t{1} << 56;
constexpr std::int64_t kMaxTokenizerFileBytes = std::int64_t{64} << 20;
constexpr std::string_view kFormat = "weft-tokens";

bool is_bare_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find_first_of(std::string_view("/\\\0", 3)) == name.npos;
}

bool is_digest(const std::string& text) {
  return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == text.npos;
}

std::string require_digest(const json& object, std::string_view key, const std::string& source) {
  const std::string& text = require_string(object, key, source);
  if (!is_digest(text)) config_error("{}: key \"{}\": expected 64 hexadecimal digits, found \"{}\"", source, key, text);
  return text;
}

DatasetShard shard_from_json(const json& object, const std::string& source) {
  check_keys(object, {"bytes", "file", "n_docs", "n_tokens", "offsets", "sha256"}, source);
  DatasetShard shard;
  shard.file = require_string(object, "file", source);
  if (!is_bare_name(shard.file)) config_error("{}: key \"file\": \"{}\" is not a bare file name", source, shard.file);
  shard.bytes = require_int(object, "bytes", source, 0, kMaxCount);
  shard.sha256 = require_digest(object, "sha256", source);
  shard.n_tokens = require_int(object, "n_tokens", source, 1, kMaxCount);
  shard.n_docs = require_int(object, "n_docs", source, 1, shard.n_tokens);
  const json& offsets = require_object(object, "offsets", source);
  const std::string offsets_source = source + ", offsets";
  check_keys(offsets, {"crc/doc_offsets", "crc/tokens", "doc_bytes", "doc_offsets", "doc_source", "sources", "tokens"},
             offsets_source);
  for (const auto& [name, value] : offsets.items()) {
    shard.offsets[name] = require_int(offsets, name, offsets_source, 0, shard.bytes);
  }
  return shard;
}

std::vector<DatasetTokenizerFile> tokenizer_files_from_json(const json& tokenizer, const std::string& where) {
  std::vector<DatasetTokenizerFile> files;
  for (const json& entry : require_array(tokenizer, "files", where)) {
    const std::string source = fmt::format("{}, files[{}]", where, files.size());
    check_keys(entry, {"bytes", "name", "sha256"}, source);
    DatasetTokenizerFile file;
    file.name = require_string(entry, "name", source);
    const bool repeated = std::any_of(files.begin(), files.end(), [&](const auto& f) { return f.name == file.name; });
    if (!is_tokenizer_file(file.name) || repeated) {
      config_error("{}: key \"name\": \"{}\" is {}", source, file.name,
                   repeated ? "named twice" : "no file of a tokenizer");
    }
    file.bytes = require_int(entry, "bytes", source, 0, kMaxTokenizerFileBytes);
    file.sha256 = require_digest(entry, "sha256", source);
    files.push_back(std::move(file));
  }
  return files;
}

DatasetSource source_from_json(const json& object, const std::string& where) {
  check_keys(object, {"bytes", "documents", "name", "sha256", "tokens"}, where);
  DatasetSource source;
  source.name = require_string(object, "name", where);
  source.sha256 = require_string(object, "sha256", where);
  source.bytes = require_int(object, "bytes", where, 0, kMaxCount);
  source.documents = require_int(object, "documents", where, 0, kMaxCount);
  source.tokens = require_int(object, "tokens", where, 0, kMaxCount);
  return source;
}

void check_totals(const DatasetManifest& manifest, const std::string& source) {
  std::int64_t tokens = 0;
  std::int64_t docs = 0;
  for (const DatasetShard& shard : manifest.shards) {
    tokens += shard.n_tokens;
    docs += shard.n_docs;
    if (tokens > kMaxCount) config_error("{}: the shards claim more than {} tokens", source, kMaxCount);
  }
  if (tokens != manifest.n_tokens || docs != manifest.n_docs) {
    config_error("{}: {} tokens in {} documents, but its shards add up to {} tokens in {} documents", source,
                 manifest.n_tokens, manifest.n_docs, tokens, docs);
  }
}

DatasetManifest from_json(const std::string& text, const std::string& source) {
  const json object = parse_strict(text, source, std::uint64_t{256} << 20);
  const auto format = object.is_object() ? object.find("format") : object.end();
  if (!object.is_object() || format == object.end() || *format != kFormat) {
    config_error("{}: not the manifest of a weft dataset (\"format\" is not \"{}\")", source, kFormat);
  }
  const std::int64_t version = require_int(object, "version", source);
  if (version < 1 || version > kDatasetVersion) {
    config_error("{}: dataset version {}, this build reads versions 1 to {}", source, version, kDatasetVersion);
  }
  check_keys(object,
             {"doc_terminator", "format", "n_docs", "n_tokens", "options", "prepare_digest", "program", "shards",
              "skipped", "sources", "text_bytes", "token_bytes", "tokenizer", "version"},
             source);
  DatasetManifest manifest;
  manifest.n_tokens = require_int(object, "n_tokens", source, 1, kMaxCount);
  manifest.n_docs = require_int(object, "n_docs", source, 1, manifest.n_tokens);
  manifest.text_bytes = require_int(object, "text_bytes", source, 0, kMaxCount);
  manifest.token_bytes = require_int(object, "token_bytes", source, 2, 4);
  if (manifest.token_bytes == 3) config_error("{}: key \"token_bytes\": 3 is neither 2 nor 4", source);
  manifest.eos_terminated = require_int(object, "doc_terminator", source, 0, 1) == 1;

  const json& tokenizer = require_object(object, "tokenizer", source);
  const std::string where = source + ", tokenizer";
  check_keys(tokenizer, {"bos_id", "eos_id", "files", "fingerprint", "name", "vocab_size"}, where);
  if (version >= 2) manifest.tokenizer_files = tokenizer_files_from_json(tokenizer, where);
  manifest.tokenizer_name = require_string(tokenizer, "name", where);
  manifest.tokenizer_fingerprint = require_digest(tokenizer, "fingerprint", where);
  manifest.vocab_size = require_int(tokenizer, "vocab_size", where, 1, std::numeric_limits<std::int32_t>::max());
  manifest.bos_id = require_int(tokenizer, "bos_id", where, -1, manifest.vocab_size - 1);
  manifest.eos_id = require_int(tokenizer, "eos_id", where, -1, manifest.vocab_size - 1);

  int index = 0;
  for (const json& shard : require_array(object, "shards", source)) {
    manifest.shards.push_back(shard_from_json(shard, fmt::format("{}, shards[{}]", source, index++)));
  }
  index = 0;
  for (const json& entry : require_array(object, "sources", source)) {
    manifest.sources.push_back(source_from_json(entry, fmt::format("{}, sources[{}]", source, index++)));
  }
  const json& skipped = require_object(object, "skipped", source);
  for (const auto& [reason, count] : skipped.items()) {
    manifest.skipped[reason] = require_int(skipped, reason, source + ", skipped", 0, kMaxCount);
  }
  const json& options = require_object(object, "options", source);
  for (const auto& [key, value] : options.items()) {
    manifest.options[key] = require_string(options, key, source + ", options");
  }
  manifest.prepare_digest = require_digest(object, "prepare_digest", source);
  manifest.program = require_string(object, "program", source);
  check_totals(manifest, source);
  return manifest;
}

}  // namespace

std::string manifest_to_json(const DatasetManifest& manifest) {
  json shards = json::array();
  for (const DatasetShard& shard : manifest.shards) {
    shards.push_back({{"bytes", shard.bytes},
                      {"file", shard.file},
                      {"n_docs", shard.n_docs},
                      {"n_tokens", shard.n_tokens},
                      {"offsets", shard.offsets},
                      {"sha256", shard.sha256}});
  }
  json sources = json::array();
  for (const DatasetSource& source : manifest.sources) {
    sources.push_back({{"bytes", source.bytes},
                       {"documents", source.documents},
                       {"name", source.name},
                       {"sha256", source.sha256},
                       {"tokens", source.tokens}});
  }
  json tokenizer = {{"bos_id", manifest.bos_id},
                    {"eos_id", manifest.eos_id},
                    {"fingerprint", manifest.tokenizer_fingerprint},
                    {"name", manifest.tokenizer_name},
                    {"vocab_size", manifest.vocab_size}};
  for (const DatasetTokenizerFile& file : manifest.tokenizer_files) {
    tokenizer["files"].push_back({{"bytes", file.bytes}, {"name", file.name}, {"sha256", file.sha256}});
  }
  return canonical({{"doc_terminator", manifest.eos_terminated ? 1 : 0},
                    {"format", kFormat},
                    {"n_docs", manifest.n_docs},
                    {"n_tokens", manifest.n_tokens},
                    {"options", json(manifest.options)},
                    {"prepare_digest", manifest.prepare_digest},
                    {"program", manifest.program},
                    {"shards", shards},
                    {"skipped", json(manifest.skipped)},
                    {"sources", sources},
                    {"text_bytes", manifest.text_bytes},
                    {"token_bytes", manifest.token_bytes},
                    {"tokenizer", tokenizer},
                    {"version", manifest.tokenizer_files.empty() ? 1 : 2}});
}

DatasetManifest manifest_from_json(const std::string& text, const std::string& source) {
  try {
    return from_json(text, source);
  } catch (const Error& error) {
    // A manifest that was read but makes no sense is bad input, not a failing disk.
    throw Error(ExitCode::config, error.what());
  }
}

}  // namespace weft
