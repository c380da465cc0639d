// The header of a safetensors file: eight bytes of length, JSON, then the data the entries point into.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoints/safetensors/dtype.h"

namespace weft {

inline constexpr std::uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;
inline constexpr std::size_t kMaxSafetensorsTensors = 1'000'000;
inline constexpr std::size_t kMaxSafetensorsDims = 8;
inline constexpr std::size_t kMaxTensorNameBytes = 1024;
// Of the length and the header together in files that weft writes; readers need 8.
inline constexpr std::uint64_t kSafetensorsAlignment = 64;

struct SafetensorsEntry {
  std::string name;
  SafetensorsDType dtype = SafetensorsDType::f32;
  std::vector<std::int64_t> shape;
  // Bytes, relative to the start of the data.
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

struct SafetensorsHeader {
  // Sorted by name.
  std::vector<SafetensorsEntry> entries;
  std::map<std::string, std::string> metadata;
};

// Parses and validates: strict JSON of depth <= 4 without duplicate keys; names of 1 to 1024 bytes without control
// characters; exactly dtype, shape (<= 8 dimensions) and data_offsets in every entry; sizes that multiply without
// overflow to what the offsets say; entries that cover `data_bytes` without hole or overlap. Anything else is an Error
// (storage) that names `source`, the tensor and the rule. Memory is bounded by a multiple of the text.
SafetensorsHeader parse_safetensors_header(std::string_view json, std::uint64_t data_bytes, std::string_view source);

// Why `name` cannot be a tensor's, or an empty string.
std::string tensor_name_problem(std::string_view name);

// Bytes of a tensor; nullopt if they overflow 2^63 or are no whole number.
std::optional<std::uint64_t> tensor_bytes(SafetensorsDType dtype, std::span<const std::int64_t> shape);

// Length and JSON, padded with spaces to a multiple of kSafetensorsAlignment; entries in the given order.
std::string format_safetensors_header(std::span<const SafetensorsEntry> entries,
                                      const std::map<std::string, std::string>& metadata);

}  // namespace weft
