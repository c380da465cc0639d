// The stream of steps: resumable anywhere, every row once an epoch, mixtures, exhaustion.
#include "data/sampler/sampler.h"

#include <algorithm>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <set>

#include "data/sampler/sampler_test_support.h"

namespace weft {
namespace {

using namespace data_test;

bool equal(const StepPlan& x, const StepPlan& y) {
  return x.step == y.step && x.rows == y.rows && x.order_digest == y.order_digest;
}

TEST(Sampler, OneEpochVisitsEachRowOnce) {
  const SamplerFixture f;
  for (const Packing packing : {Packing::concat, Packing::pack}) {
    SamplerOptions options = f.options(packing);
    options.rows_per_step = 1;
    Sampler sampler(options);
    const std::int64_t rows = sampler.rows_per_epoch(0);
    const auto steps = all_steps(sampler);
    ASSERT_EQ(static_cast<std::int64_t>(steps.size()), 3 * rows);
    std::vector<std::vector<std::int64_t>> orders;
    for (std::int64_t epoch = 0; epoch < 3; ++epoch) {
      std::set<std::int64_t> seen;
      orders.emplace_back();
      for (std::int64_t r = 0; r < rows; ++r) {
        const RowRef& row = steps[static_cast<std::size_t>(epoch * rows + r)].rows[0];
        EXPECT_EQ(row.epoch, epoch);
        EXPECT_TRUE(seen.insert(row.index).second);
        orders.back().push_back(row.index);
      }
    }
    EXPECT_NE(orders[0], orders[1]);
  }
}

TEST(Sampler, RowsDoNotDependOnRowsPerStep) {
  const SamplerFixture f;
  SamplerOptions options = f.options(Packing::concat, true);
  Sampler eight(options);
  options.rows_per_step = 4;
  Sampler four(options);
  const auto sorted = [](std::vector<RowRef> rows) {
    std::sort(rows.begin(), rows.end(), [](const RowRef& x, const RowRef& y) {
      return std::tie(x.source, x.epoch, x.index) < std::tie(y.source, y.epoch, y.index);
    });
    return rows;
  };
  for (int step = 0; step < 10; ++step) {
    std::vector<RowRef> halves = four.next()->rows;
    const std::vector<RowRef> second = four.next()->rows;
    halves.insert(halves.end(), second.begin(), second.end());
    EXPECT_EQ(sorted(halves), sorted(eight.next()->rows));
  }
}

TEST(Sampler, ResumesAtEveryStep) {
  const SamplerFixture f;
  for (const auto& [packing, mixture] : std::vector<std::pair<Packing, bool>>{
           {Packing::concat, false}, {Packing::concat, true}, {Packing::pack, true}, {Packing::bucket, false}}) {
    const SamplerOptions options = f.options(packing, mixture);
    Sampler sampler(options);
    std::vector<std::string> states = {sampler.state()};
    std::vector<StepPlan> steps;
    while (auto step = sampler.next()) {
      steps.push_back(*step);
      states.push_back(sampler.state());
    }
    ASSERT_GT(steps.size(), 20u);
    for (std::size_t k = 0; k < states.size(); ++k) {
      Sampler resumed(options);
      EXPECT_TRUE(resumed.restore(states[k]).empty());
      EXPECT_EQ(resumed.state(), states[k]);
      const auto next = resumed.next();
      ASSERT_EQ(next.has_value(), k < steps.size());
      if (next) {
        ASSERT_TRUE(equal(*next, steps[k])) << name_of(packing) << " step " << k;
        ASSERT_EQ(resumed.state(), states[k + 1]);
      }
    }
  }
}

// Micro-step a of group i takes rows (a DP + i) b ... of the step's list.
// A shard that becomes shorter while it is open cannot be read: tried again, then passed on.
TEST(Sampler, SkipsSteps) {
  const SamplerFixture f;
  SamplerOptions options = f.options(Packing::concat, true);
  Sampler plain(options);
  options.skip_steps = {{3, 5}, {8, 8}};
  Sampler skipping(options);
  const auto expected = all_steps(plain, 20);
  const auto steps = all_steps(skipping, 16);
  std::size_t k = 0;
  for (const StepPlan& step : expected) {
    if ((step.step >= 3 && step.step <= 5) || step.step == 8) continue;
    EXPECT_TRUE(equal(steps[k++], step)) << step.step;
  }
  EXPECT_EQ(plain.rows_drawn(), skipping.rows_drawn());
}

TEST(Sampler, MixtureFollowsItsScheduleAndStopsExhaustedSources) {
  const SamplerFixture f;
  SamplerOptions options = f.options(Packing::concat, true);
  options.rows_per_step = 1;
  Sampler sampler(options);
  std::int64_t drawn[2] = {0, 0};
  std::int64_t rows = 0;
  double expected_b = 0;
  while (const auto step = sampler.next()) {
    const double b = 0.3 + 0.5 * std::min(1.0, static_cast<double>(rows * 64) / 40000);
    expected_b += b / (0.7 + b);
    ++rows;
    const RowRef& row = step->rows[0];
    ++drawn[row.source];
    EXPECT_LT(row.epoch, row.source == 0 ? 3 : 2);
    const bool both = drawn[0] < 3 * sampler.rows_per_epoch(0) && drawn[1] < 2 * sampler.rows_per_epoch(1);
    if (both) {
      ASSERT_NEAR(static_cast<double>(drawn[1]), expected_b, 2.0);
    }
  }
  // The rest comes from the source that is left, until it is used up, too.
  EXPECT_EQ(drawn[0], 3 * sampler.rows_per_epoch(0));
  EXPECT_EQ(drawn[1], 2 * sampler.rows_per_epoch(1));
  options.error_when_exhausted = true;
  Sampler strict(options);
  EXPECT_EQ(message_of(ExitCode::config, [&] { all_steps(strict); }),
            fmt::format("the data is exhausted after {} rows: every dataset has reached max_epochs", rows));
}

// The first draw of a cycle, over many seeds, has odds factor x steps left: chi-square.
TEST(SamplerErrors, RestoreChecksWhatItWasMadeFor) {
  const SamplerFixture f;
  SamplerOptions options = f.options(Packing::concat, true);
  Sampler sampler(options);
  for (int i = 0; i < 5; ++i) sampler.next();
  const std::string state = sampler.state();
  const auto error = [&](const SamplerOptions& other, const std::string& text) {
    return message_of(ExitCode::config, [&] { Sampler(other).restore(text); });
  };
  SamplerOptions other = options;
  other.seed = 18;
  EXPECT_EQ(error(other, state), "resuming data: the seed was 17 and is now 18");
  other = options;
  other.rows.length = 32;
  EXPECT_EQ(error(other, state), "resuming data: the sequence length was 64 and is now 32");
  other = options;
  other.sources.pop_back();
  EXPECT_EQ(error(other, state), "resuming data: the number of datasets was 2 and is now 1");
  other = options;
  std::swap(other.sources[0].dataset, other.sources[1].dataset);
  EXPECT_EQ(error(other, state),
            fmt::format("dataset {}: its digest was {} when the run was saved and is now {}; a run "
                        "keeps its data: choose another run.name",
                        f.folder / "b", f.a->digest(), f.b->digest()));
  EXPECT_THROW(Sampler(options).restore("{}"), Error);
  EXPECT_THROW(Sampler(options).restore("nonsense"), Error);
}

TEST(Sampler, ChangedDatasetRestartsWithAnotherOrder) {
  const SamplerFixture f;
  SamplerOptions options = f.options(Packing::concat, true);
  Sampler sampler(options);
  for (int i = 0; i < 5; ++i) sampler.next();
  const auto c = make_dataset(f.folder / "c", counting_documents(400, 91));
  options.sources[0].dataset = c;
  Sampler changed(options);
  const auto messages = changed.restore(sampler.state(), true);
  EXPECT_EQ(messages, (std::vector<std::string>{"dataset " + (f.folder / "c") +
                                                " has changed; its rows start anew in another order"}));
  const auto state = nlohmann::json::parse(changed.state());
  EXPECT_EQ(state["sources"][0]["rows"], 0);
  EXPECT_EQ(state["sources"][0]["restarts"], 1);
  EXPECT_GT(state["sources"][1]["rows"], 0);
  Sampler fresh(options);
  EXPECT_NE(changed.next()->rows, fresh.next()->rows);
}

TEST(SamplerErrors, ImpossibleOptions) {
  const SamplerFixture f;
  const auto error = [&](const SamplerOptions& options) {
    return message_of(ExitCode::config, [&] { Sampler{options}; });
  };
  SamplerOptions options = f.options(Packing::bucket, true);
  EXPECT_EQ(error(options), "bucket packing takes one dataset, 2 are given");
  options.sources.clear();
  EXPECT_EQ(error(options), "no training dataset");
  options = f.options(Packing::concat);
  options.sources[0].weight = {{0, 0.0}};
  EXPECT_EQ(error(options), "source " + (f.folder / "a") + ": the weight is never positive");
  options = f.options(Packing::bucket);
  options.rows_per_step = 100000;
  EXPECT_EQ(error(options), "bucket packing: no bucket of dataset " + (f.folder / "a") +
                                " has the pieces of one step (100000 rows of 64)");
  options = f.options(Packing::concat);
  options.skip_steps = {{5, 3}};
  EXPECT_EQ(error(options), "skip_steps: [5, 3] is no range of steps");
}

TEST(Sampler, DescribesWhatItWillDo) {
  const SamplerFixture f;
  EXPECT_NE(Sampler(f.options(Packing::pack)).describe().find("% of positions are padding"), std::string::npos);
  EXPECT_NE(Sampler(f.options(Packing::bucket)).describe().find("bucket 64: "), std::string::npos);
}

}  // namespace
}  // namespace weft
