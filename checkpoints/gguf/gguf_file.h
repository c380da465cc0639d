// A GGUF file: its metadata, and its tensors under the names and in the layout of the file.
#pragma once

#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoints/gguf/header.h"
#include "checkpoints/tensor_source.h"
#include "data/storage/file.h"

namespace weft {

class GgufFile final : public TensorSource {
 public:
  // Error (storage) if the file breaks any rule of the format (header.h).
  explicit GgufFile(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return file_.path(); }
  const GgufMetadata& metadata() const { return header_.metadata; }

  const std::vector<SourceTensor>& tensors() const override { return tensors_; }
  std::string where(std::string_view) const override { return path().string(); }
  // Dequantised. Error (storage) that names a type weft does not read.
  void read_floats(std::string_view name, std::int64_t row_begin, std::int64_t row_end,
                   std::span<float> out) const override;

 private:
  InputFile file_;
  GgufHeader header_;
  std::vector<SourceTensor> tensors_;
};

}  // namespace weft
