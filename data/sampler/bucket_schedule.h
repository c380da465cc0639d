// Buckets of equal-length pieces and the order in which steps visit them: Dataset Decomposition (arXiv 2405.13226).
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "data/sampler/sampler.h"

namespace weft {

// Every document's n-1 predictions are cut, largest piece first, into pieces of 2^i, min <= i <= max; a remainder below
// 2^min is dropped.
struct BucketIndex {
  int min_log2 = 0;
  int max_log2 = 0;
  std::vector<std::vector<std::int64_t>> starts;  // [max-min+1][pieces] first token of each piece
  std::int64_t dropped = 0;                       // predictions
};
BucketIndex build_bucket_index(std::span<const std::int64_t> doc_offsets, int min_log2, int max_log2);

// Where the schedule stands. In cycle c of an epoch, bucket i owns pieces [c n_i/C, (c+1) n_i/C) of its permutation,
// cut into whole steps; what is left of a step goes to the next cycle.
struct BucketState {
  std::int64_t epoch = 0;
  std::int64_t cycle = 0;
  std::int64_t draw = 0;            // steps drawn in this cycle
  std::vector<std::int64_t> taken;  // [buckets] of them
};

struct BucketDraw {
  std::int64_t epoch = 0;
  std::int32_t bucket = 0;    // i - min
  std::int64_t position = 0;  // of the step's first piece in the bucket's permutation
};

class BucketSchedule {
 public:
  // `pieces[b]` pieces lie in bucket b, shortest first. Error (config) if no bucket has enough for a step.
  BucketSchedule(const SamplerOptions& options, std::vector<std::int64_t> pieces);

  // The next step's bucket, by odds (curriculum factor) x (steps left); nothing after max_epochs (0: never).
  std::optional<BucketDraw> next(std::int64_t max_epochs);

  std::int64_t steps_per_epoch() const;
  // Pieces of bucket b that a step takes.
  std::int64_t pieces_per_step(std::size_t b) const { return pieces_per_step_[b]; }
  const BucketState& state() const { return state_; }
  // Error (config) if the state does not fit the data.
  void set_state(BucketState state);

 private:
  // Whole steps of bucket b before cycle c of an epoch.
  std::int64_t steps_before(std::size_t b, std::int64_t cycle) const;

  std::uint64_t seed_;
  std::int64_t cycles_;
  std::vector<std::int64_t> pieces_;
  std::vector<std::int64_t> pieces_per_step_;
  std::vector<std::int64_t> factors_;
  BucketState state_;
};

}  // namespace weft
