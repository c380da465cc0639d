// The stream of steps: independent of ranks, resumable anywhere, every row once an epoch.
#include "data/sampler/sampler.h"

#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "data/dataset_test_support.h"
#include "data/sampler/bucket_schedule.h"
#include "data/sampler/loader.h"

namespace weft {
namespace {

using data_test::counting_documents;
using data_test::make_dataset;
using data_test::message_of;
using data_test::TemporaryFolder;

struct Fixture {
  TemporaryFolder folder;
  std::shared_ptr<const Dataset> a = make_dataset(folder / "a", counting_documents(400, 90), 150);
  std::shared_ptr<const Dataset> b = make_dataset(folder / "b", counting_documents(150, 200));

  SamplerOptions options(Packing packing, bool mixture = false) const {
    SamplerOptions o;
    o.seed = 17;
    o.rows_per_step = 8;
    o.rows.length = 64;
    o.rows.max_docs = 70;
    o.rows.packing = packing;
    o.rows.min_bucket_log2 = 3;
    o.cycles = 3;
    o.sources.push_back({a, {{0, 0.7}}, 3});
    if (mixture) o.sources.push_back({b, {{0, 0.3}, {40000, 0.8}}, 2});
    return o;
  }
};

std::vector<StepPlan> all_steps(Sampler& sampler, std::size_t most = 100000) {
  std::vector<StepPlan> steps;
  while (steps.size() < most) {
    auto step = sampler.next();
    if (!step) break;
    steps.push_back(std::move(*step));
  }
  return steps;
}

bool equal(const StepPlan& x, const StepPlan& y) {
  return x.step == y.step && x.rows == y.rows && x.order_digest == y.order_digest;
}

TEST(Sampler, OneEpochVisitsEachRowOnce) {
  const Fixture f;
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
  const Fixture f;
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
  const Fixture f;
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

TEST(Sampler, StepsAreEqualForAnyRanks) {
  const Fixture f;
  for (const Packing packing : {Packing::concat, Packing::pack, Packing::bucket}) {
    const SamplerOptions options = f.options(packing, packing != Packing::bucket);
    // Digests and rows of the first steps for one group without accumulation.
    struct Step {
      std::string order;
      std::uint64_t content = 0;
      std::int64_t labels = 0;
      std::multiset<std::uint64_t> rows;
    };
    std::vector<Step> reference;
    for (const std::int64_t dp : {1, 2, 4, 8}) {
      for (const std::int64_t accumulation : {1, 2, 4}) {
        if (8 % (dp * accumulation) != 0) continue;
        std::vector<Step> steps(6);
        for (std::int64_t rank = 0; rank < dp; ++rank) {
          LoaderOptions load;
          load.dp_rank = rank;
          load.dp_size = dp;
          load.accumulation = accumulation;
          Loader loader(std::make_unique<Sampler>(options), load);
          for (Step& step : steps) {
            const auto loaded = loader.next();
            ASSERT_TRUE(loaded.has_value());
            ASSERT_EQ(static_cast<std::int64_t>(loaded->micro_batches.size()), accumulation);
            step.order = loaded->order_digest;
            step.content += loaded->content_digest;
            step.labels += loaded->valid_labels;
            for (const auto& batch : loaded->micro_batches) {
              ASSERT_EQ(static_cast<std::int64_t>(batch.size()), 8 / dp / accumulation);
              for (const Row& row : batch) step.rows.insert(row_digest(row));
            }
          }
        }
        if (reference.empty()) reference = steps;
        for (std::size_t k = 0; k < steps.size(); ++k) {
          EXPECT_EQ(steps[k].order, reference[k].order);
          EXPECT_EQ(steps[k].content, reference[k].content);
          EXPECT_EQ(steps[k].labels, reference[k].labels);
          EXPECT_EQ(steps[k].rows, reference[k].rows);
        }
      }
    }
    EXPECT_NE(reference[0].order, reference[1].order);
    EXPECT_NE(reference[0].content, reference[1].content);
  }
}

// Micro-step a of group i takes rows (a DP + i) b ... of the step's list.
TEST(Loader, TakesTheRowsOfItsGroup) {
  const Fixture f;
  const SamplerOptions options = f.options(Packing::concat, true);
  Sampler sampler(options);
  const auto plan = sampler.next();
  LoaderOptions load;
  load.dp_rank = 1;
  load.dp_size = 2;
  load.accumulation = 2;
  Loader loader(std::make_unique<Sampler>(options), load);
  const auto step = loader.next();
  for (std::size_t a = 0; a < 2; ++a) {
    for (std::size_t r = 0; r < 2; ++r) {
      EXPECT_EQ(row_digest(step->micro_batches[a][r]), row_digest(sampler.build(plan->rows[(a * 2 + 1) * 2 + r])));
    }
  }
  EXPECT_EQ(step->sampler_state, sampler.state());
  EXPECT_EQ(step->tokens_drawn, 8 * 64);
}

TEST(Loader, EndsAndPassesErrorsOn) {
  Fixture f;
  {
    Loader loader(std::make_unique<Sampler>(f.options(Packing::pack)), {});
    while (loader.next()) {
    }
    EXPECT_FALSE(loader.next().has_value());
    EXPECT_GE(loader.wait_seconds(), 0.0);
  }
  data_test::flip_bit(f.folder / "a/tokens-00001.h5", f.a->manifest().shards[1].offsets.at("tokens") + 1, 0);
  f.a = std::make_shared<const Dataset>(f.folder / "a");
  Loader loader(std::make_unique<Sampler>(f.options(Packing::pack)), {});
  EXPECT_NE(message_of(ExitCode::config,
                       [&] {
                         while (loader.next()) {
                         }
                       })
                .find("do not match their checksum"),
            std::string::npos);
  EXPECT_EQ(message_of(ExitCode::config,
                       [&] {
                         LoaderOptions load;
                         load.dp_size = 3;
                         Loader(std::make_unique<Sampler>(f.options(Packing::pack)), load);
                       }),
            "8 rows a step do not divide into 3 data-parallel groups times 1 accumulation steps");
}

// A shard that becomes shorter while it is open cannot be read: tried again, then passed on.
TEST(Loader, RetriesReads) {
  Fixture f;
  std::filesystem::resize_file(f.folder / "a/tokens-00000.h5", 4096);
  LoaderOptions load;
  load.retry_waits = {std::chrono::milliseconds(20), std::chrono::milliseconds(30)};
  const auto start = std::chrono::steady_clock::now();
  Loader loader(std::make_unique<Sampler>(f.options(Packing::pack)), load);
  EXPECT_NE(message_of(ExitCode::storage,
                       [&] {
                         while (loader.next()) {
                         }
                       })
                .find("tokens-00000.h5"),
            std::string::npos);
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(50));
}

TEST(Sampler, SkipsSteps) {
  const Fixture f;
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
  const Fixture f;
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

TEST(Bucket, TokensAreConservedAndUsedOnce) {
  const Fixture f;
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

// The first draw of a cycle, over many seeds, has odds factor x steps left: chi-square.
TEST(Bucket, OddsFollowTheCurriculum) {
  const Fixture f;
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
  const Fixture f;
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

TEST(SamplerErrors, RestoreChecksWhatItWasMadeFor) {
  const Fixture f;
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
            fmt::format("dataset {}: its digest was {} when the run was saved and is now {}; allow_change "
                        "restarts it",
                        f.folder / "b", f.a->digest(), f.b->digest()));
  EXPECT_THROW(Sampler(options).restore("{}"), Error);
  EXPECT_THROW(Sampler(options).restore("nonsense"), Error);
}

TEST(Sampler, ChangedDatasetRestartsWithAnotherOrder) {
  const Fixture f;
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
  const Fixture f;
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
  const Fixture f;
  EXPECT_NE(Sampler(f.options(Packing::pack)).describe().find("% of positions are padding"), std::string::npos);
  EXPECT_NE(Sampler(f.options(Packing::bucket)).describe().find("bucket 64: "), std::string::npos);
}

}  // namespace
}  // namespace weft
