#include "checkpoints/shard_index.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "autograd/check.h"
#include "checkpoints/layout.h"
#include "data/storage/json.h"
#include "data/storage/text.h"

namespace weft {

namespace {

using nlohmann::json;

constexpr std::string_view kFormat = "weft-checkpoint-index";
constexpr std::int64_t kMaxInt = std::numeric_limits<std::int64_t>::max();
// Elements of one parameter; leaves room to multiply by an element's size.
constexpr std::int64_t kMaxElements = std::int64_t{1} << 56;

SliceRecord parse_slice(const json& entry, const std::string& source, std::uint64_t shard_bytes,
                        std::uint64_t crc_block_bytes) {
  check_keys(entry, {"byte_offset", "crc32c", "dtype", "flat_offset", "global_shape", "kind", "length", "name"},
             source);
  SliceRecord slice;
  slice.kind = require_string(entry, "kind", source);
  if (!is_slice_kind(slice.kind)) storage_error("{}: unknown kind \"{}\"", source, printable(slice.kind));
  slice.name = require_string(entry, "name", source);
  if (!is_bare_name(slice.name)) storage_error("{}: key \"name\": not a parameter name", source);
  slice.dtype = parse_dtype(require_string(entry, "dtype", source), source);
  std::vector<std::int64_t> extents;
  for (const json& extent : require_array(entry, "global_shape", source)) {
    if (!extent.is_number_integer())
      storage_error("{}: key \"global_shape\" holds {}", source, printable(extent.dump()));
    extents.push_back(extent.get<std::int64_t>());
  }
  slice.shape = parse_shape(extents, source);
  const std::int64_t numel = slice.shape.numel();
  slice.offset = require_int(entry, "flat_offset", source, 0, numel);
  slice.length = require_int(entry, "length", source, numel == 0 ? 0 : 1, numel - slice.offset);
  slice.byte_offset = static_cast<std::uint64_t>(require_int(entry, "byte_offset", source, 0, kMaxInt));
  const std::uint64_t bytes = slice.byte_length();
  if (bytes > shard_bytes || slice.byte_offset > shard_bytes - bytes) {
    storage_error("{}: {} bytes at offset {} lie outside the shard of {} bytes", source, bytes, slice.byte_offset,
                  shard_bytes);
  }
  const json& sums = require_array(entry, "crc32c", source);
  const std::uint64_t blocks = (bytes + crc_block_bytes - 1) / crc_block_bytes;
  if (sums.size() != blocks) storage_error("{}: {} checksums for {} blocks", source, sums.size(), blocks);
  for (const json& sum : sums) {
    if (!sum.is_number_integer() || sum.get<std::int64_t>() < 0 || sum.get<std::int64_t>() > 0xffffffffll) {
      storage_error("{}: key \"crc32c\" holds {}", source, printable(sum.dump()));
    }
    slice.crc32c.push_back(static_cast<std::uint32_t>(sum.get<std::int64_t>()));
  }
  return slice;
}

}  // namespace

std::string SliceRecord::object() const {
  return fmt::format("/{}/{}/{}", kind, name, offset);
}

DType parse_dtype(std::string_view name, std::string_view source) {
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16, DType::i32, DType::i64}) {
    if (name_of(dtype) == name) return dtype;
  }
  storage_error("{}: unknown element type \"{}\"", source, printable(name));
}

Shape parse_shape(const std::vector<std::int64_t>& extents, std::string_view source) {
  if (extents.size() > Shape::max_rank) {
    storage_error("{}: a shape of {} extents, at most {} are allowed", source, extents.size(), Shape::max_rank);
  }
  Shape shape;
  // Zero extents are left out of the bound, so that no other pair of extents can overflow either.
  std::int64_t bound = 1;
  for (const std::int64_t extent : extents) {
    if (extent < 0) storage_error("{}: a shape has the extent {}", source, extent);
    if (__builtin_mul_overflow(bound, std::max<std::int64_t>(extent, 1), &bound) || bound > kMaxElements) {
      storage_error("{}: a shape has more than 2^56 elements", source);
    }
    shape.push_back(extent);
  }
  return shape;
}

std::string format_index(const ShardIndex& index) {
  json slices = json::array();
  for (const SliceRecord& slice : index.slices) {
    slices.push_back({{"kind", slice.kind},
                      {"name", slice.name},
                      {"global_shape", std::vector<std::int64_t>(slice.shape.begin(), slice.shape.end())},
                      {"flat_offset", slice.offset},
                      {"length", slice.length},
                      {"dtype", name_of(slice.dtype)},
                      {"byte_offset", slice.byte_offset},
                      {"crc32c", slice.crc32c}});
  }
  return canonical({{"format", kFormat},
                    {"version", {{"major", 1}, {"minor", 0}}},
                    {"step", index.step},
                    {"writer", index.writer},
                    {"nonce", index.nonce},
                    {"crc_block_bytes", index.crc_block_bytes},
                    {"slices", std::move(slices)}});
}

ShardIndex parse_index(std::string_view text, std::string_view source, std::uint64_t shard_bytes) {
  const json root = parse_strict(text, source, kMaxIndexBytes);
  check_keys(root, {"crc_block_bytes", "format", "nonce", "slices", "step", "version", "writer"}, source);
  if (require_string(root, "format", source) != kFormat) storage_error("{}: not a checkpoint index", source);
  const json& version = require_object(root, "version", source);
  check_keys(version, {"major", "minor"}, source);
  require_int(version, "minor", source, 0);
  if (const auto major = require_int(version, "major", source); major != 1) {
    storage_error("{}: index version {}, this weft reads version 1", source, major);
  }
  ShardIndex index;
  index.step = require_int(root, "step", source, 0);
  index.writer = static_cast<int>(require_int(root, "writer", source, 0, std::numeric_limits<int>::max()));
  index.nonce = require_string(root, "nonce", source);
  if (!is_bare_name(index.nonce)) storage_error("{}: key \"nonce\": not a nonce", source);
  // A multiple of every element size, and small enough for a reader to hold one block.
  index.crc_block_bytes = static_cast<std::uint64_t>(
      require_int(root, "crc_block_bytes", source, 8, static_cast<std::int64_t>(kDefaultCrcBlockBytes)));
  if (index.crc_block_bytes % 8 != 0) {
    storage_error("{}: key \"crc_block_bytes\": {} is no multiple of 8", source, index.crc_block_bytes);
  }
  const json& slices = require_array(root, "slices", source);
  for (std::size_t i = 0; i < slices.size(); ++i) {
    index.slices.push_back(
        parse_slice(slices[i], fmt::format("{}, slices[{}]", source, i), shard_bytes, index.crc_block_bytes));
  }
  return index;
}

}  // namespace weft
