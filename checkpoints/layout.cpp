#include "checkpoints/layout.h"

#include <algorithm>
#include <cerrno>
#include <system_error>

#include "autograd/check.h"
#include "data/storage/file.h"

namespace weft {

namespace fs = std::filesystem;

namespace {

constexpr std::string_view kStepPrefix = "step_";
constexpr std::size_t kStepDigits = 10;
constexpr std::string_view kTrashPrefix = ".trash-";
constexpr std::string_view kTemporaryInfix = ".tmp-";

bool is_nonce(std::string_view text) {
  return !text.empty() && text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

// Names of the directory's entries; none if it does not exist.
std::vector<std::string> entries(const fs::path& directory) {
  std::error_code error;
  std::vector<std::string> names;
  fs::directory_iterator at(directory, error);
  for (; !error && at != fs::directory_iterator(); at.increment(error)) names.push_back(at->path().filename().string());
  if (error && error != std::errc::no_such_file_or_directory) fail_with_errno("list", directory, error.value());
  return names;
}

void remove_tree(const fs::path& directory) {
  std::error_code error;
  fs::remove_all(directory, error);
  if (error) fail_with_errno("remove", directory, error.value());
}

}  // namespace

fs::path checkpoints_directory(const fs::path& run) {
  return run / "checkpoints";
}

std::string step_directory_name(std::int64_t step) {
  WEFT_CHECK(step >= 0 && step <= kMaxStep, "step {}", step);
  return fmt::format("{}{:010}", kStepPrefix, step);
}

std::string shard_name(int writer) {
  return fmt::format("shard_{:05}.h5", writer);
}
std::string index_name(int writer) {
  return fmt::format("shard_{:05}.idx.json", writer);
}

std::int64_t step_of_directory_name(std::string_view name) {
  if (name.size() != kStepPrefix.size() + kStepDigits || !name.starts_with(kStepPrefix)) return -1;
  const std::string_view digits = name.substr(kStepPrefix.size());
  if (digits.find_first_not_of("0123456789") != std::string_view::npos) return -1;
  return std::stoll(std::string(digits));
}

bool is_debris_name(std::string_view name) {
  if (name.starts_with(kTrashPrefix)) return is_nonce(name.substr(kTrashPrefix.size()));
  const auto infix = name.find(kTemporaryInfix);
  if (infix == std::string_view::npos || !is_nonce(name.substr(infix + kTemporaryInfix.size()))) return false;
  const std::string_view stem = name.substr(0, infix);
  return step_of_directory_name(stem) >= 0 || stem == "LATEST";
}

bool is_reserved_name(std::string_view name) {
  return name == kManifestName || name == kPinnedName || name.starts_with("shard_");
}

bool is_bare_name(std::string_view name) {
  constexpr std::string_view kAllowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
  return !name.empty() && name.size() <= 255 && name[0] != '.' &&
         name.find_first_not_of(kAllowed) == std::string_view::npos;
}

std::vector<CheckpointEntry> list_checkpoints(const fs::path& run) {
  const fs::path parent = checkpoints_directory(run);
  std::vector<CheckpointEntry> found;
  for (const std::string& name : entries(parent)) {
    const std::int64_t step = step_of_directory_name(name);
    if (step >= 0) found.push_back({parent / name, step});
  }
  std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.step > b.step; });
  return found;
}

std::vector<fs::path> list_debris(const fs::path& run) {
  const fs::path parent = checkpoints_directory(run);
  std::vector<fs::path> found;
  for (const std::string& name : entries(parent)) {
    if (is_debris_name(name)) found.push_back(parent / name);
  }
  std::sort(found.begin(), found.end());
  return found;
}

fs::path move_to_trash(const fs::path& directory, const ProtocolHook& hook) {
  const fs::path trash = directory.parent_path() / fmt::format("{}{}", kTrashPrefix, random_nonce());
  rename_durably(directory, trash);
  if (hook) hook("trash: moved");
  return trash;
}

void remove_trash(const fs::path& trash, const ProtocolHook& hook) {
  // File by file, so that the hook sees a half-deleted directory too.
  for (const std::string& name : entries(trash)) {
    remove_tree(trash / name);
    if (hook) hook("trash: file removed");
  }
  remove_tree(trash);
  if (hook) hook("trash: removed");
}

std::vector<fs::path> clean_debris(const fs::path& run) {
  std::vector<fs::path> debris = list_debris(run);
  for (const fs::path& path : debris) remove_tree(path);
  return debris;
}

}  // namespace weft
