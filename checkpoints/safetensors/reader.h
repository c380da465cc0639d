// Reading safetensors: one file, or the folder of a model. Everything is checked before a tensor is read
// (header.h, index.h); reads are positional, so memory is the caller's alone and one object may serve several threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoints/safetensors/header.h"
#include "checkpoints/tensor_source.h"
#include "data/storage/file.h"
#include "data/storage/links.h"

namespace weft {

class SafetensorsFile final : public TensorSource {
 public:
  // Error (storage) if the file breaks any rule of the format.
  explicit SafetensorsFile(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return file_.path(); }
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }
  // Sorted by name; offsets count from the start of the data.
  const std::vector<SafetensorsEntry>& entries() const { return header_.entries; }
  // Error (storage) if there is none of this name.
  const SafetensorsEntry& entry(std::string_view name) const;

  // The stored bytes of rows [row_begin, row_end) of the first dimension, little-endian, whatever their dtype; `out`
  // has exactly their size. Rows of dtypes below 8 bits must be whole bytes.
  void read_rows(std::string_view name, std::int64_t row_begin, std::int64_t row_end, std::span<std::byte> out) const;
  // All of the tensor's bytes.
  void read(std::string_view name, std::span<std::byte> out) const;

  const std::vector<SourceTensor>& tensors() const override { return tensors_; }
  std::string where(std::string_view) const override { return path().string(); }
  void read_floats(std::string_view name, std::int64_t row_begin, std::int64_t row_end,
                   std::span<float> out) const override;

 private:
  InputFile file_;
  std::uint64_t data_begin_ = 0;
  SafetensorsHeader header_;
  std::vector<SourceTensor> tensors_;
};

// The weights of a model: model.safetensors, or the shards that model.safetensors.index.json lists.
class SafetensorsDirectory final : public TensorSource {
 public:
  // Error (storage) if a file is missing, malformed or outside the folder, if a mapped tensor is not where the index
  // says, or if a tensor is in two files. Pickled weights (.bin, .pt, ...) are never opened.
  explicit SafetensorsDirectory(const std::filesystem::path& directory,
                                LinkTargets links = LinkTargets::inside_the_folder);

  const std::vector<SafetensorsFile>& files() const { return files_; }
  // The file that holds a tensor; Error (storage) if none does.
  const SafetensorsFile& file_of(std::string_view name) const;
  // Tensors of the shards that the index does not list, sorted; they are not in tensors().
  const std::vector<std::string>& extra_tensors() const { return extra_tensors_; }

  const std::vector<SourceTensor>& tensors() const override { return tensors_; }
  std::string where(std::string_view name) const override;
  void read_floats(std::string_view name, std::int64_t row_begin, std::int64_t row_end,
                   std::span<float> out) const override;

 private:
  std::filesystem::path directory_;
  std::vector<SafetensorsFile> files_;
  std::vector<SourceTensor> tensors_;
  // For each of tensors_: its place in files_.
  std::vector<std::size_t> file_indices_;
  std::vector<std::string> extra_tensors_;
};

}  // namespace weft
