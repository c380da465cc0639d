#include "checkpoints/safetensors/writer.h"

#include <algorithm>
#include <set>
#include <system_error>
#include <utility>

#include "autograd/check.h"
#include "checkpoints/safetensors/header.h"
#include "checkpoints/safetensors/index.h"
#include "data/storage/file.h"
#include "data/storage/text.h"

namespace weft {

namespace {

namespace fs = std::filesystem;

// Of rounded elements at a time on their way to the file.
constexpr std::size_t kStagingBytes = std::size_t{4} << 20;

std::uint64_t bytes_of(const TensorDeclaration& tensor) {
  const auto bytes = tensor_bytes(tensor.dtype, tensor.shape);
  WEFT_CHECK(bytes.has_value(), "the size of tensor {} overflows", tensor.name);
  return *bytes;
}

void check_declarations(const std::vector<TensorDeclaration>& tensors) {
  WEFT_CHECK(tensors.size() <= kMaxSafetensorsTensors, "{} tensors", tensors.size());
  std::set<std::string_view> names;
  for (const TensorDeclaration& tensor : tensors) {
    const std::string problem = tensor_name_problem(tensor.name);
    WEFT_CHECK(problem.empty() && tensor.name != "__metadata__", "tensor \"{}\": {}", printable(tensor.name), problem);
    WEFT_CHECK(names.insert(tensor.name).second, "two tensors are called {}", tensor.name);
    const bool has_good_shape = tensor.shape.size() <= kMaxSafetensorsDims &&
                                std::all_of(tensor.shape.begin(), tensor.shape.end(), [](auto n) { return n >= 0; });
    WEFT_CHECK(has_good_shape, "tensor {}: shape [{}]", tensor.name, fmt::join(tensor.shape, ", "));
  }
}

class FileSink final : public TensorSink {
 public:
  FileSink(OutputFile& file, const TensorDeclaration& tensor)
      : file_(file), tensor_(tensor), end_(file.bytes_written() + bytes_of(tensor)) {}

  void write_floats(std::span<const float> values) override {
    if (tensor_.dtype == SafetensorsDType::f32) return write_bytes(std::as_bytes(values));
    WEFT_CHECK(holds_reals(tensor_.dtype), "tensor {} is {}, not of floats", tensor_.name, name_of(tensor_.dtype));
    const auto width = static_cast<std::size_t>(bits_of(tensor_.dtype)) / 8;
    const std::size_t step = kStagingBytes / width;
    staging_.resize(std::min(step, values.size()) * width);
    for (; !values.empty(); values = values.subspan(std::min(step, values.size()))) {
      const auto part = values.first(std::min(step, values.size()));
      const auto bytes = std::span(staging_).first(part.size() * width);
      if (const auto bad = stored_from_floats(tensor_.dtype, part, bytes)) {
        config_error("tensor \"{}\" holds {}, which is outside the range of {}; write it as F32", tensor_.name,
                     part[*bad], name_of(tensor_.dtype));
      }
      write_bytes(bytes);
    }
  }

  void write_bytes(std::span<const std::byte> bytes) override {
    WEFT_CHECK(bytes.size() <= end_ - file_.bytes_written(), "tensor {} was supplied too many bytes", tensor_.name);
    file_.write(bytes);
  }

  void finish() const {
    WEFT_CHECK(file_.bytes_written() == end_, "tensor {} was supplied {} bytes too few", tensor_.name,
               end_ - file_.bytes_written());
  }

 private:
  OutputFile& file_;
  const TensorDeclaration& tensor_;
  std::uint64_t end_;
  std::vector<std::byte> staging_;
};

// A finished file that is not under its final name yet; removed unless it gets there.
class AsideFile {
 public:
  explicit AsideFile(fs::path final_path) : final_path_(std::move(final_path)), path_(final_path_) {
    path_ += ".tmp-" + random_nonce();
  }
  AsideFile(AsideFile&& other) noexcept
      : final_path_(std::move(other.final_path_)), path_(std::exchange(other.path_, fs::path())) {}
  ~AsideFile() {
    std::error_code ignored;
    if (!path_.empty()) fs::remove(path_, ignored);
  }
  const fs::path& path() const { return path_; }
  void rename() {
    rename_durably(path_, final_path_);
    path_.clear();
  }

 private:
  fs::path final_path_;
  fs::path path_;
};

AsideFile write_aside(const fs::path& path, std::vector<TensorDeclaration> tensors, const TensorSupplier& supply,
                      const std::map<std::string, std::string>& metadata) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorDeclaration& a, const TensorDeclaration& b) {
    return std::pair(-bits_of(a.dtype), std::string_view(a.name)) <
           std::pair(-bits_of(b.dtype), std::string_view(b.name));
  });
  std::vector<SafetensorsEntry> entries;
  std::uint64_t end = 0;
  for (const TensorDeclaration& tensor : tensors) {
    const std::uint64_t begin = end;
    end += bytes_of(tensor);
    entries.push_back({tensor.name, tensor.dtype, tensor.shape, begin, end});
  }
  AsideFile aside(path);
  OutputFile file(aside.path());
  file.write(format_safetensors_header(entries, metadata));
  for (const TensorDeclaration& tensor : tensors) {
    FileSink sink(file, tensor);
    supply(tensor, sink);
    sink.finish();
  }
  file.fsync();
  file.close();
  return aside;
}

std::vector<std::vector<TensorDeclaration>> split(std::vector<TensorDeclaration> tensors, std::uint64_t shard_bytes) {
  std::vector<std::vector<TensorDeclaration>> shards(1);
  std::uint64_t filled = 0;
  for (TensorDeclaration& tensor : tensors) {
    const std::uint64_t bytes = bytes_of(tensor);
    if (!shards.back().empty() && (filled > shard_bytes || bytes > shard_bytes - filled)) {
      shards.emplace_back();
      filled = 0;
    }
    filled += bytes;
    shards.back().push_back(std::move(tensor));
  }
  return shards;
}

void check_holds_no_weights(const fs::path& directory) {
  std::error_code error;
  for (fs::directory_iterator entry(directory, error), end; !error && entry != end; entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name.ends_with(".safetensors") || name == kIndexFileName) {
      storage_error("{} holds weights already ({}); write to an empty folder", directory.string(), printable(name));
    }
  }
  if (error) storage_error("cannot list {}: {}", directory.string(), error.message());
}

}  // namespace

void write_safetensors_file(const fs::path& path, std::vector<TensorDeclaration> tensors, const TensorSupplier& supply,
                            const std::map<std::string, std::string>& metadata) {
  check_declarations(tensors);
  write_aside(path, std::move(tensors), supply, metadata).rename();
}

std::vector<std::string> write_safetensors_directory(const fs::path& directory, std::vector<TensorDeclaration> tensors,
                                                     const TensorSupplier& supply, std::uint64_t shard_bytes,
                                                     const std::map<std::string, std::string>& metadata) {
  check_declarations(tensors);
  check_holds_no_weights(directory);
  std::uint64_t total_bytes = 0;
  for (const TensorDeclaration& tensor : tensors) total_bytes += bytes_of(tensor);
  const auto shards = split(std::move(tensors), shard_bytes);
  if (shards.size() == 1) {
    write_aside(directory / kSingleFileName, shards[0], supply, metadata).rename();
    return {std::string(kSingleFileName)};
  }
  std::vector<std::string> names;
  std::vector<AsideFile> files;
  std::map<std::string, std::string> weight_map;
  for (const auto& shard : shards) {
    names.push_back(fmt::format("model-{:05}-of-{:05}.safetensors", names.size() + 1, shards.size()));
    for (const TensorDeclaration& tensor : shard) weight_map.emplace(tensor.name, names.back());
    files.push_back(write_aside(directory / names.back(), shard, supply, metadata));
  }
  try {
    for (AsideFile& file : files) file.rename();
    write_file_atomically(directory / kIndexFileName, format_safetensors_index(weight_map, total_bytes));
  } catch (const Error&) {
    std::error_code ignored;
    for (const std::string& name : names) fs::remove(directory / name, ignored);
    throw;
  }
  names.emplace_back(kIndexFileName);
  return names;
}

}  // namespace weft
