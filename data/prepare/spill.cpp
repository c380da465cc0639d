#include "data/prepare/spill.h"

#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <filesystem>
#include <unistd.h>

#include "autograd/check.h"
#include "data/storage/file.h"

namespace weft {

namespace {

void append_to_file(const std::string& path, std::span<const std::byte> bytes) {
  const int descriptor = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (descriptor < 0) fail_with_errno("open", path, errno);
  int error_number = 0;
  while (!bytes.empty() && error_number == 0) {
    const ssize_t n = ::write(descriptor, bytes.data(), std::min(bytes.size(), std::size_t{1} << 30));
    if (n >= 0) {
      bytes = bytes.subspan(static_cast<std::size_t>(n));
    } else if (errno != EINTR) {
      error_number = errno;
    }
  }
  if (::close(descriptor) != 0 && error_number == 0) error_number = errno;
  if (error_number != 0) fail_with_errno("write to", path, error_number);
}

void cut_file(const std::string& path, std::int64_t bytes) {
  std::error_code error;
  const bool exists = std::filesystem::exists(path, error);
  const auto size = exists ? static_cast<std::int64_t>(std::filesystem::file_size(path)) : 0;
  if (size < bytes)
    storage_error("{}: {} bytes, the journal says {}; remove its folder to start anew", path, size, bytes);
  if (size > bytes && ::truncate(path.c_str(), bytes) != 0) fail_with_errno("shorten", path, errno);
}

void append(std::vector<std::byte>& buffer, std::span<const std::byte> bytes) {
  buffer.insert(buffer.end(), bytes.begin(), bytes.end());
}

}  // namespace

std::string spill_path(const std::string& folder, const std::string& name, std::int64_t number, const char* kind) {
  return fmt::format("{}/{}-{:04}.{}", folder, name, number, kind);
}

std::int64_t spill_of(std::uint64_t key, std::int64_t count) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<std::int64_t>((static_cast<Wide>(key) * static_cast<std::uint64_t>(count)) >> 64);
}

SpillWriter::SpillWriter(std::string folder, std::string name, std::int64_t count, std::int64_t buffer_bytes,
                         std::span<const SpillLength> lengths)
    : folder_(std::move(folder)),
      name_(std::move(name)),
      buffer_each_(std::clamp<std::int64_t>(buffer_bytes / count, 4096, std::int64_t{4} << 20)),
      spills_(static_cast<std::size_t>(count)) {
  for (std::size_t i = 0; i < spills_.size(); ++i) {
    if (!lengths.empty()) spills_[i].on_disk = lengths[i];
    const auto number = static_cast<std::int64_t>(i);
    cut_file(spill_path(folder_, name_, number, "index"), spills_[i].on_disk.index_bytes);
    cut_file(spill_path(folder_, name_, number, "tokens"), spills_[i].on_disk.token_bytes);
  }
}

void SpillWriter::add(const SpilledDocument& document, std::span<const std::byte> tokens) {
  const std::int64_t number = spill_of(document.key, static_cast<std::int64_t>(spills_.size()));
  Spill& spill = spills_[static_cast<std::size_t>(number)];
  append(spill.index, std::as_bytes(std::span(&document, 1)));
  append(spill.tokens, tokens);
  if (static_cast<std::int64_t>(spill.index.size() + spill.tokens.size()) >= buffer_each_) flush_one(number);
}

void SpillWriter::flush_one(std::int64_t number) {
  Spill& spill = spills_[static_cast<std::size_t>(number)];
  if (spill.index.empty()) return;
  append_to_file(spill_path(folder_, name_, number, "index"), spill.index);
  append_to_file(spill_path(folder_, name_, number, "tokens"), spill.tokens);
  spill.on_disk.index_bytes += static_cast<std::int64_t>(spill.index.size());
  spill.on_disk.token_bytes += static_cast<std::int64_t>(spill.tokens.size());
  spill.index.clear();
  spill.tokens.clear();
  spill.dirty = true;
}

void SpillWriter::flush() {
  for (std::size_t i = 0; i < spills_.size(); ++i) flush_one(static_cast<std::int64_t>(i));
}

void SpillWriter::sync() {
  flush();
  for (std::size_t i = 0; i < spills_.size(); ++i) {
    if (!spills_[i].dirty) continue;
    const auto number = static_cast<std::int64_t>(i);
    fsync_file(spill_path(folder_, name_, number, "index"));
    fsync_file(spill_path(folder_, name_, number, "tokens"));
    spills_[i].dirty = false;
  }
  fsync_directory(folder_);
}

std::vector<SpillLength> SpillWriter::lengths() const {
  std::vector<SpillLength> lengths;
  for (const Spill& spill : spills_) lengths.push_back(spill.on_disk);
  return lengths;
}

}  // namespace weft
