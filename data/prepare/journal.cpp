#include "data/prepare/journal.h"

#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <nlohmann/json.hpp>
#include <sys/file.h>
#include <unistd.h>

#include "autograd/check.h"
#include "data/storage/crc32c.h"
#include "data/storage/file.h"
#include "data/storage/json.h"

namespace weft {

namespace {

using nlohmann::json;

std::uint32_t crc_of(std::string_view text) {
  return crc32c(std::as_bytes(std::span(text)));
}

json to_json(const CollectedDataset& d) {
  json spills = json::array();
  for (const SpillLength& spill : d.spills) spills.push_back({spill.index_bytes, spill.token_bytes});
  return {{"documents", d.documents},
          {"skipped", d.skipped},
          {"source_documents", d.source_documents},
          {"source_tokens", d.source_tokens},
          {"spills", spills},
          {"text_bytes", d.text_bytes},
          {"tokens", d.tokens}};
}

CollectedDataset collected_from_json(const json& object) {
  CollectedDataset d;
  d.documents = object.at("documents").get<std::int64_t>();
  d.tokens = object.at("tokens").get<std::int64_t>();
  d.text_bytes = object.at("text_bytes").get<std::int64_t>();
  object.at("skipped").get_to(d.skipped);
  object.at("source_documents").get_to(d.source_documents);
  object.at("source_tokens").get_to(d.source_tokens);
  for (const json& spill : object.at("spills")) {
    d.spills.push_back({spill.at(0).get<std::int64_t>(), spill.at(1).get<std::int64_t>()});
  }
  return d;
}

json to_json(const CollectState& s) {
  return {{"crc", s.position.crc},
          {"datasets", {to_json(s.datasets[0]), to_json(s.datasets[1])}},
          {"first_skipped", s.first_skipped},
          {"hashes", s.hashes},
          {"input", s.position.input},
          {"input_bytes", s.input_bytes},
          {"input_digests", s.input_digests},
          {"input_documents", s.input_documents},
          {"input_lines", s.input_lines},
          {"offset", s.position.offset},
          {"ordinal", s.ordinal},
          {"text_bytes", s.text_bytes}};
}

CollectState collect_from_json(const json& object) {
  CollectState s;
  s.position = {object.at("input").get<std::int64_t>(), object.at("offset").get<std::int64_t>(),
                object.at("crc").get<std::uint32_t>()};
  s.ordinal = object.at("ordinal").get<std::int64_t>();
  s.input_documents = object.at("input_documents").get<std::int64_t>();
  s.input_lines = object.at("input_lines").get<std::int64_t>();
  s.text_bytes = object.at("text_bytes").get<std::int64_t>();
  s.hashes = object.at("hashes").get<std::int64_t>();
  object.at("input_digests").get_to(s.input_digests);
  object.at("input_bytes").get_to(s.input_bytes);
  object.at("first_skipped").get_to(s.first_skipped);
  for (std::size_t i = 0; i < 2; ++i) s.datasets[i] = collected_from_json(object.at("datasets").at(i));
  return s;
}

json to_json(const DatasetShard& shard) {
  return {{"bytes", shard.bytes},       {"file", shard.file},       {"n_docs", shard.n_docs},
          {"n_tokens", shard.n_tokens}, {"offsets", shard.offsets}, {"sha256", shard.sha256}};
}

DatasetShard shard_from_json(const json& object) {
  DatasetShard shard;
  object.at("file").get_to(shard.file);
  object.at("sha256").get_to(shard.sha256);
  object.at("offsets").get_to(shard.offsets);
  shard.bytes = object.at("bytes").get<std::int64_t>();
  shard.n_docs = object.at("n_docs").get<std::int64_t>();
  shard.n_tokens = object.at("n_tokens").get<std::int64_t>();
  return shard;
}

void apply_record(const json& record, JournalContent& content) {
  const auto kind = record.at("kind").get<std::string>();
  if (kind == "job") {
    record.at("digest").get_to(content.job);
  } else if (kind == "collect") {
    content.collect = collect_from_json(record.at("state"));
    content.collected = record.at("end").get<bool>();
  } else if (kind == "shard") {
    EmitState& emit = content.emit.at(record.at("dataset").get<std::size_t>());
    emit.shards.push_back(shard_from_json(record.at("shard")));
    emit.spill = record.at("spill").get<std::int64_t>();
    emit.document = record.at("document").get<std::int64_t>();
  } else {
    content.collect = collect_from_json(record.at("state"));
    content.collected = true;
    content.complete = true;
  }
}

}  // namespace

Journal::Journal(const std::string& path) : path_(path) {
  descriptor_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (descriptor_ < 0) fail_with_errno("create", path, errno);
  if (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    ::close(descriptor_);
    config_error("{} is in use by another weft prepare", path);
  }
  try {
    load(read_small_file(path, std::uint64_t{4} << 30));
  } catch (...) {
    ::close(descriptor_);
    throw;
  }
}

Journal::~Journal() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

// A line is eight hexadecimal digits of CRC-32C, a space, and the record.
void Journal::load(const std::string& text) {
  std::size_t at = 0;
  while (true) {
    const std::size_t end = text.find('\n', at);
    if (end == text.npos || end - at < 10) break;
    const std::string body = text.substr(at + 9, end - at - 9);
    if (text.substr(at, 9) != fmt::format("{:08x} ", crc_of(body))) break;
    apply_record(json::parse(body), content_);
    at = end + 1;
  }
  if (at < text.size() && ::ftruncate(descriptor_, static_cast<off_t>(at)) != 0)
    fail_with_errno("shorten", path_, errno);
}

void Journal::append(const std::string& body) {
  const std::string line = fmt::format("{:08x} {}\n", crc_of(body), body);
  std::string_view rest = line;
  while (!rest.empty()) {
    const ssize_t n = ::write(descriptor_, rest.data(), rest.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_with_errno("write to", path_, errno);
    rest.remove_prefix(static_cast<std::size_t>(n));
  }
  if (::fsync(descriptor_) != 0) fail_with_errno("fsync", path_, errno);
  apply_record(json::parse(body), content_);
}

void Journal::start(const std::string& job) {
  if (::ftruncate(descriptor_, 0) != 0) fail_with_errno("shorten", path_, errno);
  content_ = JournalContent();
  append(canonical({{"digest", job}, {"kind", "job"}}));
}

void Journal::record_collect(const CollectState& state, bool collected) {
  append(canonical({{"end", collected}, {"kind", "collect"}, {"state", to_json(state)}}));
}

void Journal::record_shard(int dataset, const DatasetShard& shard, std::int64_t next_spill,
                           std::int64_t next_document) {
  append(canonical({{"dataset", dataset},
                    {"document", next_document},
                    {"kind", "shard"},
                    {"shard", to_json(shard)},
                    {"spill", next_spill}}));
}

void Journal::record_complete(const CollectState& state) {
  append(canonical({{"kind", "complete"}, {"state", to_json(state)}}));
}

}  // namespace weft
