// Length buckets: conservation, odds, curriculum.
#include <gtest/gtest.h>
#include <map>
#include <set>

#include "data/sampler/bucket_schedule.h"
#include "data/sampler/sampler_test_support.h"

namespace weft {
namespace {

using namespace data_test;

TEST(Bucket, TokensAreConservedAndUsedOnce) {
  const SamplerFixture f;
  SamplerOptions options = f.options(Packing::bucket);
  options.rows_per_step = 2;
  options.sources[0].max_epochs = 1;
  const BucketIndex index = build_bucket_index(f.a->doc_offsets(), 3, 6);
  std::int64_t used = 0;
  for (std::size_t b = 0; b < index.starts.size(); ++b) {
    used += static_cast<std::int64_t>(index.starts[b].size()) << (3 + b);
  }
  EXPECT_EQ(used + index.dropped, f.a->n_tokens() - f.a->n_docs());

  Sampler sampler(options);
  const auto steps = all_steps(sampler);
  EXPECT_EQ(static_cast<std::int64_t>(steps.size()) * 2, sampler.rows_per_epoch(0));
  std::map<std::int32_t, std::int64_t> pieces;
  std::set<std::pair<std::int32_t, std::int64_t>> positions;
  for (const StepPlan& step : steps) {
    for (const RowRef& row : step.rows) {
      EXPECT_EQ(row.bucket, step.rows[0].bucket);
      const std::int64_t each = 8 >> row.bucket;
      for (std::int64_t i = 0; i < each; ++i) EXPECT_TRUE(positions.emplace(row.bucket, row.index + i).second);
      pieces[row.bucket] += each;
      const Row built = sampler.build(row);
      EXPECT_EQ(built.length(), 64);
      EXPECT_EQ(built.valid_labels(), 64);
      EXPECT_EQ(static_cast<std::int64_t>(built.cu_seqlens.size()) - 1, each);
      for (std::int64_t i = 0; i <= each; ++i)
        EXPECT_EQ(built.cu_seqlens[static_cast<std::size_t>(i)], i * (64 / each));
    }
  }
  // All but less than a step of each bucket.
  for (std::size_t b = 0; b < index.starts.size(); ++b) {
    const auto n = static_cast<std::int64_t>(index.starts[b].size());
    const std::int64_t step = 2 * (8 >> b);
    EXPECT_EQ(pieces[static_cast<std::int32_t>(b)], n / step * step);
    EXPECT_TRUE(positions.empty() ||
                positions.rbegin()->second < static_cast<std::int64_t>(index.starts.back().size()));
  }
}

TEST(Bucket, OddsFollowTheCurriculum) {
  const SamplerFixture f;
  for (const bool reversed : {false, true}) {
    SamplerOptions options = f.options(Packing::bucket);
    options.rows_per_step = 1;
    options.cycles = 1;
    options.reverse_curriculum = reversed;
    const std::vector<std::int64_t> pieces = {160, 40, 60, 50};  // 20, 10, 30, 50 steps
    const double factor[] = {8, 4, 2, 1};
    const double steps[] = {20, 10, 30, 50};
    double total = 0;
    for (std::size_t b = 0; b < 4; ++b) total += steps[b] * (reversed ? factor[3 - b] : factor[b]);
    double count[4] = {0, 0, 0, 0};
    const int trials = 4000;
    for (int seed = 0; seed < trials; ++seed) {
      options.seed = static_cast<std::uint64_t>(seed);
      ++count[BucketSchedule(options, pieces).next(1)->bucket];
    }
    double chi_square = 0;
    for (std::size_t b = 0; b < 4; ++b) {
      const double expected = trials * steps[b] * (reversed ? factor[3 - b] : factor[b]) / total;
      chi_square += (count[b] - expected) * (count[b] - expected) / expected;
    }
    EXPECT_LT(chi_square, 16.3);  // 3 degrees of freedom, p = 0.001
  }
}

TEST(Bucket, ShortPiecesComeFirst) {
  const SamplerFixture f;
  SamplerOptions options = f.options(Packing::bucket);
  options.rows_per_step = 1;
  options.cycles = 1;
  const std::vector<std::int64_t> pieces = {1600, 800, 400, 200};  // 200 steps each
  BucketSchedule schedule(options, pieces);
  double first_half = 0, second_half = 0;
  for (int draw = 0; draw < 800; ++draw) (draw < 400 ? first_half : second_half) += schedule.next(1)->bucket;
  EXPECT_LT(first_half, second_half - 100);
  EXPECT_FALSE(schedule.next(1).has_value());
}

}  // namespace
}  // namespace weft
