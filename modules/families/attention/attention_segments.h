// How the backward pass cuts the keys of documents into work items. A function of lengths and options alone, so that a
// document's gradients have the same bits whatever is packed beside it.
#pragma once

#include <span>
#include <vector>

#include "modules/families/attention/visibility.h"

namespace weft {

// Keys of tiles [tile_begin, tile_end) of a document and the queries [query_begin, query_end) of it that see them.
struct KeySegment {
  std::int64_t document;
  std::int64_t tile_begin, tile_end;
  std::int64_t query_begin, query_end;  // tokens of the document
  std::int64_t share_begin;             // token of the workspace where its share of dq starts
  std::int64_t anchor;                  // index among the segments that hold an anchor, or -1
};

struct SegmentPlan {
  std::vector<KeySegment> segments;           // in order of documents, then of keys
  std::vector<std::int64_t> document_offset;  // [N + 1]
  std::int64_t share_tokens = 0;
  std::int64_t anchored = 0;
  std::int64_t max_keys = 0;

  explicit SegmentPlan(const AttentionBackward& a) {
    document_offset.push_back(0);
    for (std::int64_t n = 0; n < a.document_count; ++n) {
      const Visibility see(a.documents[n], a.options);
      const std::int64_t first = see.own_begin / kKeyTile;
      const std::int64_t last = see.own_begin < see.own_end ? (see.own_end - 1) / kKeyTile + 1 : first;
      if (a.documents[n].anchor_row >= 0 && (first > 0 || first == last)) add(a, see, n, 0, 1);
      const std::int64_t step = std::max(kSmallestSegment, (last - first + kMostSegments - 1) / kMostSegments);
      for (std::int64_t t = first; t < last; t += step) add(a, see, n, t, std::min(t + step, last));
      document_offset.push_back(static_cast<std::int64_t>(segments.size()));
    }
  }

  std::span<const KeySegment> of_document(std::int64_t n) const {
    const auto i = static_cast<std::size_t>(n);
    return std::span(segments).subspan(static_cast<std::size_t>(document_offset[i]),
                                       static_cast<std::size_t>(document_offset[i + 1] - document_offset[i]));
  }

 private:
  // Tiles of a segment: enough that shares of dq are few, not so many that threads lack work.
  static constexpr std::int64_t kSmallestSegment = 8;
  static constexpr std::int64_t kMostSegments = 8;

  void add(const AttentionBackward& a, const Visibility& see, std::int64_t n, std::int64_t begin, std::int64_t end) {
    const AttentionDocument& document = a.documents[n];
    const bool anchor = document.anchor_row >= 0 && begin == 0;
    const std::int64_t first_key = anchor ? 0 : std::max(see.own_begin, begin * kKeyTile);
    const std::int64_t last_key = std::max(first_key, std::min(see.own_end, end * kKeyTile) - 1);
    const bool pinned = first_key < see.pin_end;
    const std::int64_t count = document.query_count;
    const std::int64_t from = std::clamp<std::int64_t>(first_key - document.query_position, 0, count);
    const std::int64_t to =
        pinned ? count : std::clamp<std::int64_t>(last_key + see.window - document.query_position, from, count);
    segments.push_back({.document = n,
                        .tile_begin = begin,
                        .tile_end = end,
                        .query_begin = from,
                        .query_end = to,
                        .share_begin = share_tokens,
                        .anchor = anchor ? anchored++ : -1});
    share_tokens += to - from;
    max_keys = std::max(max_keys, (end - begin) * kKeyTile);
  }
};

}  // namespace weft
