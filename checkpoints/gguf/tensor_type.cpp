#include "checkpoints/gguf/tensor_type.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "checkpoints/float16.h"

namespace weft {

namespace {

using Bytes = std::span<const std::byte>;

std::uint16_t load16(Bytes bytes, std::size_t at) {
  std::uint16_t value;
  std::memcpy(&value, bytes.data() + at, sizeof(value));
  return value;
}

float load_half(Bytes bytes, std::size_t at) {
  return float16_to_float(load16(bytes, at));
}

void from_f32(Bytes blocks, std::span<float> values) {
  std::memcpy(values.data(), blocks.data(), blocks.size());
}

void from_f16(Bytes blocks, std::span<float> values) {
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = load_half(blocks, 2 * i);
}

void from_bf16(Bytes blocks, std::span<float> values) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = std::bit_cast<float>(std::uint32_t{load16(blocks, 2 * i)} << 16);
  }
}

constexpr std::size_t kBlock = 32;

// A scale, then 32 signed bytes.
void from_q8_0(Bytes blocks, std::span<float> values) {
  constexpr std::size_t kBytes = 2 + kBlock;
  for (std::size_t block = 0; block < values.size() / kBlock; ++block) {
    const float scale = load_half(blocks, block * kBytes);
    for (std::size_t i = 0; i < kBlock; ++i) {
      const auto quant = static_cast<std::int8_t>(blocks[block * kBytes + 2 + i]);
      values[block * kBlock + i] = static_cast<float>(quant) * scale;
    }
  }
}

// 16 bytes: their low halves are the block's first 16 numbers, their high halves the others.
template <class F>
void from_nibbles(Bytes bytes, std::span<float> values, F&& value_of) {
  for (std::size_t i = 0; i < kBlock / 2; ++i) {
    const auto byte = std::to_integer<int>(bytes[i]);
    values[i] = value_of(byte & 15);
    values[i + kBlock / 2] = value_of(byte >> 4);
  }
}

// A scale, then nibbles around 8.
void from_q4_0(Bytes blocks, std::span<float> values) {
  constexpr std::size_t kBytes = 2 + kBlock / 2;
  for (std::size_t block = 0; block < values.size() / kBlock; ++block) {
    const Bytes bytes = blocks.subspan(block * kBytes, kBytes);
    const float scale = load_half(bytes, 0);
    from_nibbles(bytes.subspan(2), values.subspan(block * kBlock, kBlock),
                 [&](int quant) { return scale * static_cast<float>(quant - 8); });
  }
}

// A scale, the minimum, then nibbles. The product is exact, so a fused multiplication and addition changes nothing.
void from_q4_1(Bytes blocks, std::span<float> values) {
  constexpr std::size_t kBytes = 4 + kBlock / 2;
  for (std::size_t block = 0; block < values.size() / kBlock; ++block) {
    const Bytes bytes = blocks.subspan(block * kBytes, kBytes);
    const float scale = load_half(bytes, 0);
    const float minimum = load_half(bytes, 2);
    from_nibbles(bytes.subspan(4), values.subspan(block * kBlock, kBlock),
                 [&](int quant) { return scale * static_cast<float>(quant) + minimum; });
  }
}

constexpr GgufTensorType kTypes[] = {
    {0, "F32", 1, 4, from_f32},        {1, "F16", 1, 2, from_f16},        {2, "Q4_0", 32, 18, from_q4_0},
    {3, "Q4_1", 32, 20, from_q4_1},    {6, "Q5_0", 32, 22, nullptr},      {7, "Q5_1", 32, 24, nullptr},
    {8, "Q8_0", 32, 34, from_q8_0},    {9, "Q8_1", 32, 40, nullptr},      {10, "Q2_K", 256, 84, nullptr},
    {11, "Q3_K", 256, 110, nullptr},   {12, "Q4_K", 256, 144, nullptr},   {13, "Q5_K", 256, 176, nullptr},
    {14, "Q6_K", 256, 210, nullptr},   {15, "Q8_K", 256, 292, nullptr},   {16, "IQ2_XXS", 256, 66, nullptr},
    {17, "IQ2_XS", 256, 74, nullptr},  {18, "IQ3_XXS", 256, 98, nullptr}, {19, "IQ1_S", 256, 50, nullptr},
    {20, "IQ4_NL", 32, 18, nullptr},   {21, "IQ3_S", 256, 110, nullptr},  {22, "IQ2_S", 256, 82, nullptr},
    {23, "IQ4_XS", 256, 136, nullptr}, {24, "I8", 1, 1, nullptr},         {25, "I16", 1, 2, nullptr},
    {26, "I32", 1, 4, nullptr},        {27, "I64", 1, 8, nullptr},        {28, "F64", 1, 8, nullptr},
    {29, "IQ1_M", 256, 56, nullptr},   {30, "BF16", 1, 2, from_bf16},     {34, "TQ1_0", 256, 54, nullptr},
    {35, "TQ2_0", 256, 66, nullptr},   {39, "MXFP4", 32, 17, nullptr},
};

}  // namespace

const GgufTensorType* gguf_tensor_type(std::uint32_t id) {
  const auto* found =
      std::find_if(std::begin(kTypes), std::end(kTypes), [&](const GgufTensorType& type) { return type.id == id; });
  return found == std::end(kTypes) ? nullptr : found;
}

std::string_view readable_gguf_types() {
  return "F32, F16, BF16, Q8_0, Q4_0 and Q4_1";
}

}  // namespace weft
