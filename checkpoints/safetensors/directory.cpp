#include <algorithm>
#include <iterator>
#include <set>
#include <system_error>
#include <utility>

#include "autograd/check.h"
#include "checkpoints/safetensors/index.h"
#include "checkpoints/safetensors/reader.h"
#include "data/storage/links.h"
#include "data/storage/text.h"

namespace weft {

namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPickleEndings[] = {".bin", ".pt", ".pth", ".ckpt", ".pkl"};

bool present(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(fs::symlink_status(path, ignored));
}

[[noreturn]] void fail_without_weights(const fs::path& directory) {
  std::string pickle;
  std::error_code error;
  for (fs::directory_iterator entry(directory, error), end; !error && entry != end; entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    const bool is_pickle = std::any_of(std::begin(kPickleEndings), std::end(kPickleEndings),
                                       [&](std::string_view ending) { return name.ends_with(ending); });
    if (is_pickle && (pickle.empty() || name < pickle)) pickle = name;
  }
  if (error) storage_error("cannot list {}: {}", directory.string(), error.message());
  if (pickle.empty()) {
    storage_error("{}: there is neither {} nor {}", directory.string(), kSingleFileName, kIndexFileName);
  }
  storage_error(
      "{}: its weights are pickled ({}), and weft never opens pickles, because loading one runs the code it holds; "
      "convert them to safetensors where they come from",
      directory.string(), printable(pickle));
}

}  // namespace

SafetensorsDirectory::SafetensorsDirectory(const fs::path& directory, LinkTargets links) : directory_(directory) {
  std::error_code error;
  if (!fs::is_directory(directory, error)) storage_error("{} is no directory of a model", directory.string());
  const fs::path index_path = directory / kIndexFileName;
  std::map<std::string, std::string> weight_map;
  std::set<std::string> names;
  const bool indexed = present(index_path);
  if (indexed) {
    const fs::path real = resolve_link(directory, std::string(kIndexFileName), links, directory.string());
    weight_map = parse_safetensors_index(read_small_file(real, kMaxIndexFileBytes), index_path.string());
    for (const auto& [tensor, file] : weight_map) names.insert(file);
    if (present(directory / kSingleFileName) && !names.contains(std::string(kSingleFileName))) {
      storage_error("{}: there are both {} and {}, which does not list it; remove the one that is out of date",
                    directory.string(), kSingleFileName, kIndexFileName);
    }
  } else if (present(directory / kSingleFileName)) {
    names.insert(std::string(kSingleFileName));
  } else {
    fail_without_weights(directory);
  }
  const std::string source = indexed ? index_path.string() : directory.string();
  std::vector<std::string> file_names(names.begin(), names.end());
  for (const std::string& name : file_names) files_.emplace_back(resolve_link(directory, name, links, source));

  struct Found {
    const SourceTensor* tensor;
    std::size_t file;
  };
  std::vector<Found> all;
  for (std::size_t file = 0; file < files_.size(); ++file) {
    for (const SourceTensor& tensor : files_[file].tensors()) all.push_back({&tensor, file});
  }
  std::sort(all.begin(), all.end(), [](const Found& a, const Found& b) {
    return std::pair(std::string_view(a.tensor->name), a.file) < std::pair(std::string_view(b.tensor->name), b.file);
  });
  for (std::size_t i = 0; i < all.size(); ++i) {
    const std::string& name = all[i].tensor->name;
    if (i > 0 && all[i - 1].tensor->name == name) {
      storage_error("{}: tensor \"{}\" is in two files, {} and {}", source, printable(name),
                    file_names[all[i - 1].file], file_names[all[i].file]);
    }
    const auto mapped = weight_map.find(name);
    if (indexed && mapped == weight_map.end()) {
      extra_tensors_.push_back(name);
      continue;
    }
    if (indexed && mapped->second != file_names[all[i].file]) {
      storage_error("{}: tensor \"{}\" should be in {}, but is in {}", source, printable(name), mapped->second,
                    file_names[all[i].file]);
    }
    tensors_.push_back(*all[i].tensor);
    file_indices_.push_back(all[i].file);
  }
  for (const auto& [name, file] : weight_map) {
    if (find(name) == nullptr) {
      storage_error("{}: tensor \"{}\" should be in {}, but is not there", source, printable(name), file);
    }
  }
}

const SafetensorsFile& SafetensorsDirectory::file_of(std::string_view name) const {
  return files_[file_indices_[static_cast<std::size_t>(&require(name) - tensors_.data())]];
}

std::string SafetensorsDirectory::where(std::string_view name) const {
  return find(name) == nullptr ? directory_.string() : file_of(name).path().string();
}

void SafetensorsDirectory::read_floats(std::string_view name, std::int64_t row_begin, std::int64_t row_end,
                                       std::span<float> out) const {
  file_of(name).read_floats(name, row_begin, row_end, out);
}

}  // namespace weft
