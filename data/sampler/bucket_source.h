// Rows of equal-length pieces.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/dataset.h"
#include "data/sampler/bucket_schedule.h"
#include "data/sampler/row.h"

namespace weft {

class BucketSource {
 public:
  BucketSource(std::shared_ptr<const Dataset> dataset, const RowOptions& options, std::uint64_t seed);

  // [buckets], shortest pieces first.
  std::vector<std::int64_t> pieces() const;
  std::int64_t pieces_per_row(std::size_t bucket) const;
  // Pieces `position` and following of the bucket's permutation.
  Row build(std::int64_t epoch, std::int32_t bucket, std::int64_t position) const;
  const BucketIndex& index() const { return index_; }

 private:
  std::shared_ptr<const Dataset> dataset_;
  RowOptions options_;
  std::uint64_t seed_;
  BucketIndex index_;
};

}  // namespace weft
