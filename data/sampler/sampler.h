// The stream of rows from datasets: mixtures, epochs, packing.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/dataset.h"
#include "data/sampler/row_source.h"
#include "data/sampler/row_stream.h"

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
  SkippedSteps skip_steps;
};

class Sampler final : public RowStream {
 public:
  // Error (config) for impossible options.
  explicit Sampler(SamplerOptions options);
  ~Sampler() override;

  const SamplerOptions& options() const;
  std::int64_t rows_drawn() const;
  // Rows of one epoch of a source; for bucket packing, rows of all its whole steps.
  std::int64_t rows_per_epoch(std::int32_t source) const;

  std::int64_t rows_per_step() const override;
  std::optional<StepPlan> next() override;
  Row build(const RowRef& row) const override;
  std::int64_t tokens_drawn() const override;  // rows drawn times T
  // Sources, rows an epoch, what is lost to packing and why.
  std::string describe() const override;

  std::string state() const override;
  std::vector<std::string> restore(std::string_view state, bool allow_change = false) override;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace weft
