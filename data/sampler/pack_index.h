// Bins of document pieces for pack rows.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace weft {

// A piece [start, start + length): inputs start .. start+length-1, labels one further.
struct Piece {
  std::int64_t start = 0;
  std::int32_t length = 0;
  bool operator==(const Piece&) const = default;
};

struct PackIndex {
  std::vector<Piece> pieces;
  std::vector<std::int64_t> bins;  // bin b is pieces [bins[b], bins[b+1])
};

// A document of n tokens has n-1 predictions, in pieces of `capacity` and a remainder. Documents are taken in blocks of
// 65,536; a block's pieces, longest first (then in storage order), go to the bin with the least sufficient room (then
// the first one). A bin takes at most `max_pieces`.
PackIndex build_pack_index(std::span<const std::int64_t> doc_offsets, std::int64_t capacity, std::int64_t max_pieces);

}  // namespace weft
