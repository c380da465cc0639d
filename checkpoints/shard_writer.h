// Writes one rank's slices: an HDF5 file and its index, verified against the memory they came from.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

#include "checkpoints/checkpoint_state.h"
#include "checkpoints/layout.h"
#include "checkpoints/manifest.h"
#include "data/storage/hdf5.h"

namespace weft {

struct ShardPlan {
  std::filesystem::path directory;  // the unfinished checkpoint
  int writer = 0;
  std::int64_t step = 0;
  std::string nonce;
  std::uint64_t crc_block_bytes = 0;
  ProtocolHook hook;
};

// Creates shard_<writer>.h5 and shard_<writer>.idx.json: each is written as .part, fsynced and renamed; the shard is
// read back and compared with `slices` first. Communicates with nobody, so it may run beside training. Any failure is
// an exception, after which nothing of this writer is left.
ShardFile write_shard(const ShardPlan& plan, std::span<const Slice> slices);

// An upper bound of the file's size, index included.
std::uint64_t shard_bytes_bound(std::span<const Slice> slices);

// How an element type is stored: bf16 as bit patterns, because not every HDF5 library knows the type.
Hdf5Type stored_type(DType dtype);

// CRC-32C of each block of the slice.
std::vector<std::uint32_t> block_checksums(std::span<const std::byte> bytes, std::uint64_t crc_block_bytes);

}  // namespace weft
