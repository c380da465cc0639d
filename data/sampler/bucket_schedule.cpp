#include "data/sampler/bucket_schedule.h"

#include <algorithm>
#include <bit>
#include <numeric>

#include "autograd/check.h"
#include "autograd/philox.h"
#include "data/sampler/permutation.h"

namespace weft {

BucketIndex build_bucket_index(std::span<const std::int64_t> doc_offsets, int min_log2, int max_log2) {
  BucketIndex index{min_log2, max_log2, {}, 0};
  index.starts.resize(static_cast<std::size_t>(max_log2 - min_log2 + 1));
  for (std::size_t d = 0; d + 1 < doc_offsets.size(); ++d) {
    std::int64_t start = doc_offsets[d];
    std::int64_t left = doc_offsets[d + 1] - start - 1;
    while (left >= (std::int64_t{1} << min_log2)) {
      const int log2 = std::min(max_log2, static_cast<int>(std::bit_width(static_cast<std::uint64_t>(left))) - 1);
      index.starts[static_cast<std::size_t>(log2 - min_log2)].push_back(start);
      start += std::int64_t{1} << log2;
      left -= std::int64_t{1} << log2;
    }
    index.dropped += left;
  }
  return index;
}

BucketSchedule::BucketSchedule(const SamplerOptions& options, std::vector<std::int64_t> pieces)
    : seed_(options.seed), cycles_(options.cycles), pieces_(std::move(pieces)) {
  const std::size_t buckets = pieces_.size();
  for (std::size_t b = 0; b < buckets; ++b) {
    const std::size_t from_max = buckets - 1 - b;
    pieces_per_step_.push_back(options.rows_per_step << from_max);
    const std::size_t rank = options.reverse_curriculum ? b : from_max;
    switch (options.curriculum) {
      case Curriculum::none:
        factors_.push_back(1);
        break;
      case Curriculum::pow2:
        factors_.push_back(std::int64_t{1} << rank);
        break;
      case Curriculum::linear:
        factors_.push_back(static_cast<std::int64_t>(rank) + 1);
        break;
    }
  }
  state_.taken.assign(buckets, 0);
  if (steps_per_epoch() == 0) {
    config_error("bucket packing: no bucket of dataset {} has the pieces of one step ({} rows of {})",
                 options.sources.front().dataset->folder(), options.rows_per_step, options.rows.length);
  }
}

std::int64_t BucketSchedule::steps_before(std::size_t b, std::int64_t cycle) const {
  __extension__ using Wide = __int128;
  return static_cast<std::int64_t>(static_cast<Wide>(cycle) * pieces_[b] / cycles_) / pieces_per_step_[b];
}

std::int64_t BucketSchedule::steps_per_epoch() const {
  std::int64_t steps = 0;
  for (std::size_t b = 0; b < pieces_.size(); ++b) steps += steps_before(b, cycles_);
  return steps;
}

void BucketSchedule::set_state(BucketState state) {
  if (state.taken.size() != pieces_.size()) {
    config_error("sampler state: {} buckets, the data has {}", state.taken.size(), pieces_.size());
  }
  for (std::size_t b = 0; b < pieces_.size(); ++b) {
    const std::int64_t steps = steps_before(b, state.cycle + 1) - steps_before(b, state.cycle);
    if (state.taken[b] < 0 || state.taken[b] > steps) {
      config_error("sampler state: {} steps of bucket {} in cycle {}, which has {}", state.taken[b], b, state.cycle,
                   steps);
    }
  }
  state_ = std::move(state);
}

std::optional<BucketDraw> BucketSchedule::next(std::int64_t max_epochs) {
  for (;;) {
    if (max_epochs > 0 && state_.epoch >= max_epochs) return std::nullopt;
    std::vector<std::int64_t> odds(pieces_.size());
    for (std::size_t b = 0; b < odds.size(); ++b) {
      const std::int64_t steps = steps_before(b, state_.cycle + 1) - steps_before(b, state_.cycle);
      odds[b] = factors_[b] * (steps - state_.taken[b]);
    }
    const std::int64_t total = std::accumulate(odds.begin(), odds.end(), std::int64_t{0});
    if (total > 0) {
      const auto cycle = static_cast<std::uint64_t>(state_.epoch * cycles_ + state_.cycle);
      RandomWords words(permutation_key(seed_, RandomStream::bucket, cycle), RandomStream::bucket,
                        static_cast<std::uint64_t>(state_.draw));
      auto ticket = static_cast<std::int64_t>(words.below(static_cast<std::uint64_t>(total)));
      std::size_t b = 0;
      while (ticket >= odds[b]) ticket -= odds[b++];
      const std::int64_t step = steps_before(b, state_.cycle) + state_.taken[b];
      ++state_.taken[b];
      ++state_.draw;
      return BucketDraw{state_.epoch, static_cast<std::int32_t>(b), step * pieces_per_step_[b]};
    }
    std::fill(state_.taken.begin(), state_.taken.end(), 0);
    state_.draw = 0;
    if (++state_.cycle == cycles_) {
      state_.cycle = 0;
      ++state_.epoch;
    }
  }
}

}  // namespace weft
