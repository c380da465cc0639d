// The element types of safetensors files, and the way of the real ones to and from float.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace weft {

enum class SafetensorsDType : std::uint8_t {
  f4,
  f6_e2m3,
  f6_e3m2,
  boolean,
  u8,
  i8,
  f8_e4m3,
  f8_e5m2,
  f8_e8m0,
  f8_e4m3fnuz,
  f8_e5m2fnuz,
  i16,
  u16,
  f16,
  bf16,
  i32,
  u32,
  f32,
  i64,
  u64,
  f64,
  c64,
};

// As files spell it: "F32".
std::string_view name_of(SafetensorsDType dtype);
std::optional<SafetensorsDType> safetensors_dtype(std::string_view name);
// Bits an element takes: 4 to 64.
int bits_of(SafetensorsDType dtype);

// F64, F32, F16, BF16: what becomes floats, and is made of them.
bool holds_reals(SafetensorsDType dtype);

// Little-endian elements of a type that holds reals, as floats: F64 rounded to the nearest, the others exactly. Returns
// the index of the first finite F64 that no finite float is near to; `values` is complete up to there.
std::optional<std::size_t> floats_from_stored(SafetensorsDType dtype, std::span<const std::byte> stored,
                                              std::span<float> values);
// The reverse, rounded to the nearest, ties to even. Returns the index of the first finite value that the type's range
// excludes.
std::optional<std::size_t> stored_from_floats(SafetensorsDType dtype, std::span<const float> values,
                                              std::span<std::byte> stored);

}  // namespace weft
