// Data parallelism: sums gradients over the ranks that hold the same parameters, bucket by bucket, while the backward
// pass still runs (Li et al., "PyTorch Distributed", VLDB 2020; parameters and optimizer state stay replicated).
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "autograd/parameter.h"
#include "parallel/communicator.h"

namespace weft {

// Where each parameter lies in one flat array, and which stretches of it are reduced together.
struct FlatLayout {
  // Every parameter starts at a multiple of this many elements.
  static constexpr std::int64_t kPadding = 256;

  struct Bucket {
    std::size_t first_parameter;  // parameters [first, last) of the canonical order
    std::size_t last_parameter;
    std::int64_t begin;  // elements [begin, end) of the flat array
    std::int64_t end;
  };

  // Offsets follow the canonical order of the parameters; buckets are filled from the last parameter backwards, so that
  // bucket 0 is the first that a backward pass completes. A parameter larger than a bucket has a bucket to itself.
  FlatLayout(std::span<const std::int64_t> element_counts, std::int64_t bucket_elements);

  std::vector<std::int64_t> offsets;
  std::vector<Bucket> buckets;
  std::vector<std::size_t> bucket_of;  // by parameter
  std::int64_t elements = 0;           // padding included
};

// One step is: accumulate gradients of all micro-steps; in the last one, mark_ready() each parameter as its gradient is
// final; finish(). Gradients are summed, never averaged: the loss is already divided by the global token count. The sum
// is folded in rank order, so every rank gets the same bits. With one rank it does nothing.
class GradientReducer {
 public:
  static constexpr std::int64_t kBucketBytes = std::int64_t{32} << 20;

  // `parameters` in canonical order, all gradients allocated and of one type (f32 or f64). With more than one rank
  // their gradients move, values included, into one flat array owned here, so that buckets are reduced in place: take
  // no copy of Parameter::grad before. The group and the parameters outlive the reducer.
  GradientReducer(Communicator& group, std::vector<Parameter*> parameters, std::int64_t bucket_bytes = kBucketBytes);

  // The gradient of this parameter will not be written again in this step. Posts the buckets that are now complete, in
  // their fixed order. Call it from the last micro-step only, once for each parameter.
  void mark_ready(const Parameter& parameter);

  // Reduces what has not been posted (a parameter without gradient counts as zeros), waits for all, and starts anew.
  void finish();

  const FlatLayout& layout() const { return layout_; }
  // How many buckets have been posted so far in this step.
  std::size_t posted() const { return posted_; }

 private:
  void post_next_bucket();

  Communicator* group_;
  std::unordered_map<const Parameter*, std::size_t> index_of_;
  FlatLayout layout_;
  Tensor flat_;
  std::vector<bool> ready_;               // by parameter
  std::vector<std::size_t> outstanding_;  // by bucket: parameters not ready
  std::vector<Event> events_;
  std::size_t posted_ = 0;
};

}  // namespace weft
