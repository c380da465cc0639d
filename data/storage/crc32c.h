// CRC-32C (Castagnoli polynomial, reflected): the checksum of data blocks in datasets and checkpoints.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace weft {

// The checksum of `bytes`, or of earlier bytes followed by these when given the earlier checksum.
std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t crc = 0);

}  // namespace weft
