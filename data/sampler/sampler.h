// Which rows an optimizer step consumes. A step is a pure function of the options, the datasets and the steps before
// it; the number of ranks, micro-batches and accumulation do not enter. State is a few integers, whatever the data's
// size.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "data/dataset.h"
#include "data/sampler/row.h"
#include "data/sampler/row_source.h"

namespace weft {

// A source's share of rows: piecewise linear in tokens drawn, constant before the first and after the last point.
struct WeightPoint {
  std::int64_t tokens = 0;
  double weight = 1.0;
};

struct SamplerSource {
  std::shared_ptr<const Dataset> dataset;
  std::vector<WeightPoint> weight = {{0, 1.0}};
  std::int64_t max_epochs = 4;  // 0: without limit
};

// Odds of buckets over a cycle: all alike, or short pieces first as 2^(max-i) or max-i+1; reversed: long ones first.
enum class Curriculum : std::uint8_t { none, pow2, linear };
std::string_view name_of(Curriculum curriculum);
Curriculum curriculum_from_name(std::string_view name);

struct SamplerOptions {
  std::uint64_t seed = 0;
  std::int64_t rows_per_step = 1;  // R, over all ranks
  RowOptions rows;
  std::vector<SamplerSource> sources;  // bucket packing takes one
  std::int64_t cycles = 8;             // bucket: passes of the curriculum through the data in an epoch
  Curriculum curriculum = Curriculum::pow2;
  bool reverse_curriculum = false;
  bool error_when_exhausted = false;  // false: the stream ends cleanly when every source has reached max_epochs
  // Data steps [first, last] that are drawn and thrown away, to get round bad data.
  std::vector<std::pair<std::int64_t, std::int64_t>> skip_steps;
};

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
  std::string order_digest;  // 16 hexadecimal digits over the datasets' digests and the rows: equal for any ranks
};

class Sampler {
 public:
  // Error (config) for impossible options.
  explicit Sampler(SamplerOptions options);
  ~Sampler();

  const SamplerOptions& options() const;
  // Plans the next step and advances; nothing when the data is exhausted.
  std::optional<StepPlan> next();
  // Thread-safe.
  Row build(const RowRef& row) const;

  std::int64_t rows_drawn() const;
  std::int64_t tokens_drawn() const;  // rows drawn times T
  // Rows of one epoch of a source; for bucket packing, rows of all its whole steps.
  std::int64_t rows_per_epoch(std::int32_t source) const;
  // For people, at the start of a run: sources, rows an epoch, what is lost to packing and why.
  std::string describe() const;

  // The state after the last next(), as JSON.
  std::string state() const;
  // Continues from a saved state. Error (config) if seed, row options or a dataset's digest differ. With allow_change,
  // a source whose dataset changed begins anew with another key; the messages say so, for the log.
  std::vector<std::string> restore(std::string_view state, bool allow_change = false);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace weft
