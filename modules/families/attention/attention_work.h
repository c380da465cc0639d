// What the CUDA kernels walk: tables of tiles in device memory, made once for a row of documents.
//
// A forward work item is a tile of queries of one head; a backward one is a tile of keys with the group of heads that
// read it. Tables hold only places and positions, so that every option and every head width shares them. Entries with
// count <= 0 are padding.
#pragma once

#include <cstdint>
#include <vector>

#include "modules/families/attention/attention.h"

namespace weft {

// Rows of a forward tile of queries, of a backward one, and of a tile of keys. Tiles of keys start at positions that
// are multiples of kKeyRows, wherever they lie.
inline constexpr std::int32_t kForwardRows = 128;
inline constexpr std::int32_t kBackwardRows = 64;
inline constexpr std::int32_t kKeyRows = 128;

struct alignas(16) AttentionQueryTile {
  std::int32_t row, count;          // rows of q, o, lse
  std::int32_t position;            // of the first
  std::int32_t key_shift;           // the key at position p is row key_shift + p of k and v
  std::int32_t key_begin, key_end;  // positions of the document's keys
  std::int32_t anchor_row;          // row of one more key, at position 0, or -1
  std::int32_t document;
};

struct alignas(16) AttentionKeyTile {
  std::int32_t row;         // of k, v of the key at `position`; what lies outside [begin, end) is not this document's
  std::int32_t count;       // end - begin
  std::int32_t position;    // multiple of kKeyRows
  std::int32_t begin, end;  // positions of its keys
  std::int32_t query_tile, query_tiles;  // the document's tiles of queries: [query_tile, query_tile + query_tiles)
  std::int32_t query_position;           // of the document's first query
  std::int32_t key_begin;                // position of the document's first key
  std::int32_t anchor;                   // 1: every query tile sees key `position`, which is the anchor
  std::int32_t padding[2];
};

struct AttentionTables {
  std::vector<AttentionQueryTile> forward;   // kForwardRows; long rows of keys first
  std::vector<AttentionQueryTile> backward;  // kBackwardRows; in order of documents
  std::vector<AttentionKeyTile> keys;        // ascending inside a document, long documents first
};
AttentionTables attention_tables(const AttentionDocument* documents, std::int64_t count);

// The same on the device.
struct AttentionDeviceTables {
  const AttentionQueryTile* forward = nullptr;
  const AttentionQueryTile* backward = nullptr;
  const AttentionKeyTile* keys = nullptr;
  std::int32_t forward_count = 0, backward_count = 0, key_count = 0;
};

}  // namespace weft
