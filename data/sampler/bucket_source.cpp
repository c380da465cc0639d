#include "data/sampler/bucket_source.h"

#include <bit>

#include "autograd/philox.h"
#include "data/sampler/permutation.h"
#include "data/sampler/row_builder.h"

namespace weft {

BucketSource::BucketSource(std::shared_ptr<const Dataset> dataset, const RowOptions& options, std::uint64_t seed)
    : dataset_(std::move(dataset)),
      options_(options),
      seed_(seed),
      index_(build_bucket_index(dataset_->doc_offsets(), options.min_bucket_log2,
                                static_cast<int>(std::bit_width(static_cast<std::uint64_t>(options.length))) - 1)) {}

std::vector<std::int64_t> BucketSource::pieces() const {
  std::vector<std::int64_t> counts;
  for (const auto& starts : index_.starts) counts.push_back(static_cast<std::int64_t>(starts.size()));
  return counts;
}

std::int64_t BucketSource::pieces_per_row(std::size_t bucket) const {
  return std::int64_t{1} << (index_.starts.size() - 1 - bucket);
}

Row BucketSource::build(std::int64_t epoch, std::int32_t bucket, std::int64_t position) const {
  const auto b = static_cast<std::size_t>(bucket);
  const std::vector<std::int64_t>& starts = index_.starts[b];
  const KeyedPermutation order(permutation_key(seed_, RandomStream::window_permutation, b),
                               static_cast<std::uint32_t>(epoch), starts.size());
  std::vector<std::int32_t> tokens((std::size_t{1} << (index_.min_log2 + bucket)) + 1);
  RowBuilder builder(options_, *dataset_);
  for (std::int64_t i = 0; i < pieces_per_row(b); ++i) {
    dataset_->read(starts[order(static_cast<std::uint64_t>(position + i))], tokens);
    builder.add_predictions(tokens);
  }
  return builder.finish();
}

}  // namespace weft
