#include <cerrno>
#include <filesystem>
#include <fstream>
#include <unistd.h>

#include "autograd/check.h"
#include "data/prepare/collector.h"
#include "data/storage/file.h"

namespace weft {

namespace {
constexpr std::size_t kFirstSlots = std::size_t{1} << 16;
constexpr std::array<std::uint64_t, 2> kFree = {0, 0};
}  // namespace

SeenTexts::SeenTexts(std::string path, std::int64_t count, std::int64_t max_bytes)
    : path_(std::move(path)), max_bytes_(max_bytes), table_(kFirstSlots, kFree) {
  std::error_code error;
  if (count == 0) {
    std::filesystem::remove(path_, error);
    return;
  }
  const InputFile file(path_);
  std::vector<Hash> block(kFirstSlots);
  for (std::int64_t at = 0; at < count;) {
    const auto n =
        static_cast<std::size_t>(std::min<std::int64_t>(static_cast<std::int64_t>(block.size()), count - at));
    file.read_at(static_cast<std::uint64_t>(at) * sizeof(Hash), std::as_writable_bytes(std::span(block).first(n)));
    for (std::size_t i = 0; i < n; ++i) insert(block[i]);
    at += static_cast<std::int64_t>(n);
  }
  unwritten_.clear();
  if (::truncate(path_.c_str(), static_cast<off_t>(count * static_cast<std::int64_t>(sizeof(Hash)))) != 0) {
    fail_with_errno("shorten", path_, errno);
  }
}

bool SeenTexts::place(std::vector<Hash>& table, const Hash& hash) const {
  const std::size_t mask = table.size() - 1;
  for (std::size_t slot = hash[0] & mask;; slot = (slot + 1) & mask) {
    if (table[slot] == hash) return false;
    if (table[slot] == kFree) {
      table[slot] = hash;
      return true;
    }
  }
}

bool SeenTexts::insert(const Hash& hash) {
  const bool inserted = hash == kFree ? !std::exchange(has_zero_, true) : place(table_, hash);
  if (!inserted) return false;
  ++count_;
  unwritten_.push_back(hash);
  // Two thirds full: 24 bytes a document.
  if (static_cast<std::size_t>(count_) * 3 > table_.size() * 2) grow();
  return true;
}

void SeenTexts::grow() {
  const std::size_t slots = table_.size() * 2;
  if (static_cast<std::int64_t>(slots * sizeof(Hash)) > max_bytes_) {
    config_error("--dedup exact: {} different documents need more memory than half of --memory ({} bytes); give more",
                 count_, max_bytes_);
  }
  std::vector<Hash> larger(slots, kFree);
  for (const Hash& hash : table_) {
    if (hash != kFree) place(larger, hash);
  }
  table_ = std::move(larger);
}

void SeenTexts::sync() {
  if (unwritten_.empty()) return;
  std::ofstream file(path_, std::ios::binary | std::ios::app);
  file.write(reinterpret_cast<const char*>(unwritten_.data()),
             static_cast<std::streamsize>(unwritten_.size() * sizeof(Hash)));
  file.close();
  if (!file) fail_with_errno("write to", path_, errno);
  fsync_file(path_);
  unwritten_.clear();
}

}  // namespace weft
