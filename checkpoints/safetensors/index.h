// model.safetensors.index.json: which shard holds which tensor.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

namespace weft {

inline constexpr std::string_view kSingleFileName = "model.safetensors";
inline constexpr std::string_view kIndexFileName = "model.safetensors.index.json";
inline constexpr std::uint64_t kMaxIndexFileBytes = std::uint64_t{64} << 20;

// Tensor name -> file name. File names are bare (no separators, not hidden) and end in .safetensors, so that joining
// one with the folder never leaves it. Error (storage) naming `source` and the entry otherwise.
std::map<std::string, std::string> parse_safetensors_index(std::string_view json, std::string_view source);

// `total_bytes`: of all tensors. Canonical JSON.
std::string format_safetensors_index(const std::map<std::string, std::string>& weight_map, std::uint64_t total_bytes);

}  // namespace weft
