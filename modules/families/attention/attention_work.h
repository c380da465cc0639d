// What the CUDA kernels walk: tables of tiles in the workspace, made on the device from the row's documents.
//
// A forward work item is a tile of queries of one head; a backward one is a tile of keys with the group of heads that
// read it. Tables hold only places and positions, so that every option and every head width shares them. Entries with
// count <= 0 are padding. Tiles restart at each document.
#pragma once

#include <cstdint>

#include "modules/families/attention/attention.h"

namespace weft {

struct alignas(16) AttentionQueryTile {
  std::int32_t row, count;          // rows of q, o, lse
  std::int32_t position;            // of the first
  std::int32_t key_row;             // row of k, v of the document's first key
  std::int32_t key_begin, key_end;  // positions of the document's keys
  std::int32_t anchor_row;          // row of one more key, at position 0, or -1
  std::int32_t query_tiles;         // of the document
};

struct alignas(16) AttentionKeyTile {
  std::int32_t row, count;  // rows of k, v
  std::int32_t position;    // of the first
  std::int32_t query_tile;  // the document's tiles of queries: [query_tile, query_tile + query_tiles)
  std::int32_t query_tiles;
  std::int32_t query_position;  // of the document's first query
  std::int32_t anchor;          // 1: the anchor's only key, which every query of the row sees
  std::int32_t padding;
};

}  // namespace weft
