// What a run learns from, as the loader sees it: steps of rows, one after the other, and where the stream stands.
//
// A step is a pure function of the stream's options and the steps before it; ranks, micro-batches and accumulation do
// not enter. Rows are named when a step is planned and built later, by any thread, so that planning stays cheap.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "autograd/check.h"
#include "data/sampler/row.h"

namespace weft {

// One row by name: row `index` of epoch `epoch` of a source.
struct RowRef {
  std::int32_t source = 0;
  std::int64_t epoch = 0;
  std::int64_t index = 0;
  // bucket: the rows are made of pieces of this bucket, from position `index` of its permutation.
  std::int32_t bucket = -1;
  bool operator==(const RowRef&) const = default;
};

struct StepPlan {
  std::int64_t step = 0;     // data step; skipped ones leave gaps
  std::vector<RowRef> rows;  // [R] in the order in which ranks take them
  std::string order_digest;  // 16 hexadecimal digits over the sources' digests and the rows: equal for any ranks
};

// Data steps [first, last] that are drawn and thrown away, to get round bad data.
using SkippedSteps = std::vector<std::pair<std::int64_t, std::int64_t>>;

// Error (config) if a range is none.
void check_skipped_steps(const SkippedSteps& skipped);
bool contains(const SkippedSteps& skipped, std::int64_t step);

class RowStream {
 public:
  virtual ~RowStream() = default;

  // R, over all ranks.
  virtual std::int64_t rows_per_step() const = 0;
  // Plans the next step and advances; nothing when the data is exhausted.
  virtual std::optional<StepPlan> next() = 0;
  // Thread-safe.
  virtual Row build(const RowRef& row) const = 0;
  // Positions of all rows drawn, skipped steps included.
  virtual std::int64_t tokens_drawn() const = 0;
  // For people, at the start of a run.
  virtual std::string describe() const = 0;

  // The state after the last next(), as JSON: a few integers, whatever the data's size.
  virtual std::string state() const = 0;
  // Continues from a saved state. Error (config) if the stream is another one: another seed, other rows, or a source
  // whose digest differs. With allow_change, a source that changed begins anew in another order, where that is
  // possible; the messages say so, for the log.
  virtual std::vector<std::string> restore(std::string_view state, bool allow_change = false) = 0;
};

// For restore: one line that says what is not as it was.
template <class T>
void require_unchanged(std::string_view what, const T& saved, const T& now) {
  if (saved != now) config_error("resuming data: {} was {} and is now {}", what, saved, now);
}

}  // namespace weft
