// Row sources: rows of a dataset, each addressable by (epoch, index) in constant time.
//
// concat: consecutive windows of the stored stream, cut at another offset in every epoch.
// pack:   pieces of documents placed by best fit, so that no document that fits in a row is cut.
// bucket: pieces of equal power-of-two length (Dataset Decomposition, arXiv 2405.13226); see bucket_schedule.h.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "data/dataset.h"
#include "data/sampler/row.h"

namespace weft {

enum class Packing : std::uint8_t { concat, pack, bucket };
std::string_view name_of(Packing packing);
// Error (config) that lists the names.
Packing packing_from_name(std::string_view name);

struct RowOptions {
  std::int64_t length = 0;  // T
  Packing packing = Packing::concat;
  bool intra_document = true;  // false: cu_seqlens is one piece a row; labels stay as they are
  bool anchor = false;         // the row begins with a one-token piece of BOS (or EOS); T-1 positions are left for text
  std::int64_t max_docs = 0;   // most pieces of a row, padding and anchor included; 0: T/16 + 2
  int min_bucket_log2 = 6;     // bucket: pieces are at least 2^this long
};

class RowSource {
 public:
  virtual ~RowSource() = default;
  // Rows of one epoch; does not depend on the epoch.
  virtual std::int64_t rows() const = 0;
  // Thread-safe. Error (config) if the dataset is damaged.
  virtual Row build(std::int64_t epoch, std::int64_t index) const = 0;
  // For people: what does not get into rows and why; empty if nothing is lost.
  virtual std::string losses() const { return {}; }
};

// A source of concat or pack rows. Use it directly for evaluation: rows 0 .. rows()-1 of epoch 0, in storage order
// (concat) or block by block (pack). `seed` moves the window offsets of concat; evaluation_source has none.
// Error (config) if the dataset is too small for one row, or an option is impossible.
std::unique_ptr<RowSource> make_row_source(std::shared_ptr<const Dataset> dataset, const RowOptions& options,
                                           std::uint64_t seed);

// Every prediction of every document exactly once (pack mode), in a fixed order.
std::unique_ptr<RowSource> make_evaluation_source(std::shared_ptr<const Dataset> dataset, RowOptions options);

}  // namespace weft
