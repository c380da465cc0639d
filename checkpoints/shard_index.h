// The index of one shard file: where each slice lies and the checksums of its blocks. Loading needs the index and
// positional reads only.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoints/checkpoint_state.h"

namespace weft {

inline constexpr std::uint64_t kMaxIndexBytes = std::uint64_t{64} << 20;
inline constexpr std::uint64_t kDefaultCrcBlockBytes = std::uint64_t{64} << 20;

struct SliceRecord {
  std::string kind;
  std::string name;
  Shape shape;
  std::int64_t offset = 0;  // elements
  std::int64_t length = 0;  // elements
  DType dtype = DType::f32;
  std::uint64_t byte_offset = 0;      // from the start of the shard file; 0 if empty
  std::vector<std::uint32_t> crc32c;  // of each crc_block_bytes of the slice's bytes; none if empty

  std::uint64_t byte_length() const { return static_cast<std::uint64_t>(length) * size_of(dtype); }
  // "/<kind>/<name>/<offset>", the dataset in the shard file.
  std::string object() const;
};

struct ShardIndex {
  std::int64_t step = 0;
  int writer = 0;
  std::string nonce;
  std::uint64_t crc_block_bytes = kDefaultCrcBlockBytes;
  std::vector<SliceRecord> slices;
};

// Canonical JSON.
std::string format_index(const ShardIndex& index);
// Error (storage) naming `source` for anything that format_index does not write, for numbers out of range, and for
// slices that do not lie inside a shard of `shard_bytes`.
ShardIndex parse_index(std::string_view text, std::string_view source, std::uint64_t shard_bytes);

// Error (storage) if `name` is none of name_of(DType).
DType parse_dtype(std::string_view name, std::string_view source);
// Error (storage) unless this is an array of at most Shape::max_rank extents whose product fits.
Shape parse_shape(const std::vector<std::int64_t>& extents, std::string_view source);

}  // namespace weft
