// Builds the rows of coming steps on a thread of its own.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/sampler/row_stream.h"

namespace weft {

// With DP groups and A accumulation steps, micro-step a of group i takes rows (a DP + i) b ... + b-1 of the step's
// list, b = R / (DP A).
struct LoaderOptions {
  std::int64_t dp_rank = 0;       // i
  std::int64_t dp_size = 1;       // DP
  std::int64_t accumulation = 1;  // A
  int prefetch_steps = 2;         // steps held ready
  // Waits before the repetitions of a step whose rows could not be read; then the error (storage) is passed on. Damaged
  // data is never tried again.
  std::vector<std::chrono::milliseconds> retry_waits = {std::chrono::seconds(1), std::chrono::seconds(3),
                                                        std::chrono::seconds(6)};
};

// One data-parallel group's share of an optimizer step.
struct LoadedStep {
  std::int64_t step = 0;                        // data step
  std::vector<std::vector<Row>> micro_batches;  // [A][b]
  std::int64_t valid_labels = 0;                // of these rows; sum over groups = the loss denominator
  std::string order_digest;                     // of the whole step; equal on all ranks and for any number of them
  // Of this group's rows and their places in the step; the sum over groups mod 2^64 is equal for any number of ranks.
  std::uint64_t content_digest = 0;
  std::int64_t tokens_drawn = 0;  // over all steps up to and with this one
  std::string stream_state;       // what a checkpoint taken after this step stores
};

class Loader {
 public:
  // `stream` is where the data goes on; the loader owns it from here. Error (config) if R does not divide into DP A.
  Loader(std::unique_ptr<RowStream> stream, LoaderOptions options);
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  // Waits for the next step; nothing at the end of the data. Throws what building it threw.
  std::optional<LoadedStep> next();
  // Seconds that next() has waited so far.
  double wait_seconds() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace weft
