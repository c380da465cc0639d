#include "checkpoints/gguf/gguf_file.h"

#include <algorithm>
#include <cstring>

#include "autograd/check.h"
#include "data/storage/text.h"

namespace weft {

namespace {

// Of a tensor at a time on its way to floats; a multiple of every block.
constexpr std::int64_t kStagingElements = std::int64_t{1} << 18;

}  // namespace

GgufFile::GgufFile(const std::filesystem::path& path)
    : file_(path),
      header_(
          parse_gguf_header([this](std::uint64_t offset, std::span<std::byte> bytes) { file_.read_at(offset, bytes); },
                            file_.size(), path.string())) {
  for (const GgufTensor& tensor : header_.tensors) tensors_.push_back(tensor.tensor);
}

void GgufFile::read_floats(std::string_view name, std::int64_t row_begin, std::int64_t row_end,
                           std::span<float> out) const {
  const SourceTensor& tensor = require(name);
  const GgufTensor& stored = header_.tensors[static_cast<std::size_t>(&tensor - tensors_.data())];
  const GgufTensorType& type = *stored.type;
  if (type.dequantise == nullptr) {
    storage_error("{}: tensor \"{}\" is {}; weft reads {}", path().string(), printable(name), type.name,
                  readable_gguf_types());
  }
  WEFT_CHECK(0 <= row_begin && row_begin <= row_end && row_end <= tensor.rows(), "{}: rows [{}, {}) of {}", tensor.name,
             row_begin, row_end, tensor.rows());
  const std::int64_t first = row_begin * tensor.row_elements();
  const std::int64_t last = row_end * tensor.row_elements();
  WEFT_CHECK(static_cast<std::int64_t>(out.size()) == last - first, "{}: room for {} elements, rows [{}, {}) have {}",
             tensor.name, out.size(), row_begin, row_end, last - first);
  std::vector<std::byte> blocks;
  std::vector<float> values;
  // The elements of a vector are rows, too, and may begin inside a block.
  for (std::int64_t at = first / type.block_elements * type.block_elements; at < last; at += kStagingElements) {
    const std::int64_t wanted = std::min(kStagingElements, last - at);
    const std::int64_t count = (wanted + type.block_elements - 1) / type.block_elements;
    blocks.resize(static_cast<std::size_t>(count * type.block_bytes));
    values.resize(static_cast<std::size_t>(count * type.block_elements));
    file_.read_at(stored.begin + static_cast<std::uint64_t>(at / type.block_elements * type.block_bytes), blocks);
    type.dequantise(blocks, values);
    const std::int64_t from = std::max(at, first);
    std::copy(values.begin() + (from - at), values.begin() + wanted, out.begin() + (from - first));
  }
}

}  // namespace weft
