// Element types of GGUF tensors: blocks of quantised numbers and plain ones.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace weft {

struct GgufTensorType {
  std::uint32_t id;
  std::string_view name;
  // A row is a whole number of blocks.
  std::int64_t block_elements;
  std::int64_t block_bytes;
  // nullptr: the type's size is known, but weft does not read it. Otherwise: whole blocks to floats, in the arithmetic
  // of fp32 without rounding but for the sum in Q4_1.
  void (*dequantise)(std::span<const std::byte> blocks, std::span<float> values);
};

// nullptr for an unknown id.
const GgufTensorType* gguf_tensor_type(std::uint32_t id);

// "F32, F16, ..." of the types that can be read.
std::string_view readable_gguf_types();

}  // namespace weft
