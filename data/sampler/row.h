// Legend: T = positions of a row, N = pieces (documents or parts of them) of a row.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace weft {

inline constexpr std::int32_t kIgnoredLabel = -1;

// One row of training data: pieces of documents one after the other, at the end perhaps one piece of padding.
struct Row {
  std::vector<std::int32_t> tokens;      // [T] inputs
  std::vector<std::int32_t> labels;      // [T] the next token of the same document, or kIgnoredLabel
  std::vector<std::int32_t> cu_seqlens;  // [N+1] where pieces begin; first 0, last T
  std::vector<std::int32_t> positions;   // [T] position in the piece, from 0 (from 1 in a row with an anchor)
  std::vector<float> weight;             // [T] loss weights, or empty: 1 for every label that is not ignored
  bool anchor = false;                   // piece 0 is the anchor token, which every piece may attend to
  std::int64_t cut_tokens = 0;           // inputs replaced by padding because the row had more pieces than max_docs

  std::int64_t length() const { return static_cast<std::int64_t>(tokens.size()); }
  std::int64_t valid_labels() const;
};

// Several rows as one packed row, in order; lengths add up. Rows with an anchor cannot be joined.
Row join_rows(std::span<const Row> rows);

// A 64-bit digest of everything in a row (XXH64-like mixing; not cryptographic).
std::uint64_t row_digest(const Row& row);

}  // namespace weft
