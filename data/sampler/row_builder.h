// Puts pieces of documents together to a row: labels, piece table, positions, anchor, padding.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "data/dataset.h"
#include "data/sampler/row_source.h"

namespace weft {

// Positions of a row that hold text.
std::int64_t text_positions(const RowOptions& options);
// Most pieces of text of a row that may also need padding.
std::int64_t text_pieces(const RowOptions& options);
// Error (config) if an option is impossible or does not suit the dataset.
void check_row_options(const RowOptions& options, const Dataset& dataset);

class RowBuilder {
 public:
  RowBuilder(const RowOptions& options, const Dataset& dataset);

  // Inputs inputs[0..n) with the label of each; the pieces come in row order and fit.
  void add(std::span<const std::int32_t> inputs, std::span<const std::int32_t> labels);
  // The same for tokens[0..n+1) of one document: each is the label of the one before.
  void add_predictions(std::span<const std::int32_t> tokens);
  // Pads to T. If there are more pieces than max_docs, the row is cut before the first one that does not fit.
  Row finish();

 private:
  RowOptions options_;
  std::int32_t padding_id_;
  Row row_;
  std::vector<std::int32_t> begins_;  // of pieces, the anchor included
};

}  // namespace weft
