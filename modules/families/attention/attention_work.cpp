#include "modules/families/attention/attention_work.h"

#include <algorithm>
#include <numeric>

namespace weft {
namespace {

void add_query_tiles(std::vector<AttentionQueryTile>& tiles, const AttentionDocument& d, std::int32_t document,
                     std::int32_t rows) {
  for (std::int32_t begin = 0; begin < d.query_count; begin += rows) {
    tiles.push_back({.row = d.query_row + begin,
                     .count = std::min(rows, d.query_count - begin),
                     .position = d.query_position + begin,
                     .key_shift = d.key_row - d.key_position,
                     .key_begin = d.key_position,
                     .key_end = d.key_position + d.key_count,
                     .anchor_row = d.anchor_row,
                     .document = document});
  }
}

}  // namespace

AttentionTables attention_tables(const AttentionDocument* documents, std::int64_t count) {
  AttentionTables tables;
  std::vector<std::int32_t> first_tile;
  bool anchored = false;
  for (std::int32_t n = 0; n < count; ++n) {
    first_tile.push_back(static_cast<std::int32_t>(tables.backward.size()));
    add_query_tiles(tables.forward, documents[n], n, kForwardRows);
    add_query_tiles(tables.backward, documents[n], n, kBackwardRows);
    anchored = anchored || documents[n].anchor_row >= 0;
  }
  first_tile.push_back(static_cast<std::int32_t>(tables.backward.size()));
  std::ranges::stable_sort(tables.forward, std::greater{}, &AttentionQueryTile::position);

  // The anchor's document comes first: its key is the first of every other document.
  std::vector<std::int32_t> order(static_cast<std::size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin() + (anchored ? 1 : 0), order.end(),
                   [&](std::int32_t a, std::int32_t b) { return documents[a].key_count > documents[b].key_count; });
  for (const std::int32_t n : order) {
    const AttentionDocument& d = documents[n];
    const std::int32_t end = d.key_position + d.key_count;
    const bool anchor = anchored && n == 0;
    const auto tile = static_cast<std::size_t>(n);
    for (std::int32_t position = d.key_position / kKeyRows * kKeyRows; position < end; position += kKeyRows) {
      const std::int32_t begin = std::max(position, d.key_position);
      const std::int32_t stop = std::min(position + kKeyRows, end);
      tables.keys.push_back({.row = d.key_row - d.key_position + position,
                             .count = stop - begin,
                             .position = position,
                             .begin = begin,
                             .end = stop,
                             .query_tile = anchor ? 0 : first_tile[tile],
                             .query_tiles = anchor ? first_tile.back() : first_tile[tile + 1] - first_tile[tile],
                             .query_position = d.query_position,
                             .key_begin = d.key_position,
                             .anchor = anchor ? 1 : 0,
                             .padding = {}});
    }
  }
  return tables;
}

}  // namespace weft
