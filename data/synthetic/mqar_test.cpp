#include <algorithm>
#include <gmock/gmock.h>
#include <map>
#include <set>

#include "data/synthetic/task_test_support.h"

namespace weft {
namespace {

using data_test::make_task;
using data_test::task_error;
using data_test::TaskOptions;
using ::testing::HasSubstr;

constexpr std::int64_t kV = 128;

TaskOptions small(TaskOptions more = {}) {
  TaskOptions options = {{"vocabulary", kV}, {"length", std::int64_t{64}}, {"pairs", std::int64_t{8}}};
  options.insert(options.end(), more.begin(), more.end());
  return options;
}

// Looks keys up in a table of the first `shown` pairs; the last one counts.
data_test::Solver table_look_up(std::size_t shown) {
  return [shown](const std::vector<std::int32_t>& tokens) {
    std::map<std::int32_t, std::int32_t> values;
    for (std::size_t pair = 0; pair < shown; ++pair) values[tokens[2 * pair]] = tokens[2 * pair + 1];
    std::vector<std::int32_t> labels(tokens.size(), kIgnoredLabel);
    for (std::size_t t = 2 * shown; t < tokens.size(); ++t) {
      if (const auto it = values.find(tokens[t]); it != values.end()) labels[t] = it->second;
    }
    return labels;
  };
}

TEST(Mqar, ATableSolvesIt) {
  for (const Split split : {Split::train, Split::validation, Split::test}) {
    data_test::expect_solved(*make_task("mqar", small()), split, 200, table_look_up(8));
    data_test::expect_solved(*make_task("mqar", small({{"filler", std::string("zero")}})), split, 50, table_look_up(8));
    data_test::expect_solved(*make_task("mqar", small({{"passes", std::int64_t{3}}})), split, 50, table_look_up(24));
    data_test::expect_solved(*make_task("mqar", small({{"updates", std::int64_t{5}}})), split, 50, table_look_up(13));
  }
  // As tight as it gets: a query at every second position.
  data_test::expect_solved(*make_task("mqar", small({{"pairs", std::int64_t{16}}})), Split::train, 50,
                           table_look_up(16));
}

TEST(Mqar, ShowsDistinctKeysAndValuesAndAsksForEachKeyOnce) {
  const auto task = make_task("mqar", small({{"filler", std::string("zero")}}));
  for (std::int64_t i = 0; i < 100; ++i) {
    const Example example = task->build(Split::train, i);
    const auto& tokens = example.row.tokens;
    std::set<std::int32_t> keys, values, asked;
    for (std::size_t pair = 0; pair < 8; ++pair) {
      keys.insert(tokens[2 * pair]);
      values.insert(tokens[2 * pair + 1]);
    }
    EXPECT_EQ(keys.size(), 8u);
    EXPECT_EQ(values.size(), 8u);
    EXPECT_TRUE(std::ranges::all_of(keys, [](int k) { return k >= 1 && k < kV / 2; }));
    EXPECT_TRUE(std::ranges::all_of(values, [](int v) { return v >= kV / 2 && v < kV; }));
    for (std::size_t t = 16; t < tokens.size(); ++t) {
      const bool query = example.row.labels[t] != kIgnoredLabel;
      EXPECT_EQ(query, tokens[t] != 0);
      if (!query) continue;
      EXPECT_EQ(t % 2, 0u);
      asked.insert(tokens[t]);
    }
    EXPECT_EQ(asked, keys);
    EXPECT_EQ(example.row.valid_labels(), 8);
  }
}

TEST(Mqar, AnUpdatedKeyHasAnotherValueThanBefore) {
  const auto task = make_task("mqar", small({{"updates", std::int64_t{5}}}));
  EXPECT_EQ(task->buckets(), (std::vector<std::string>{"L=64 n=8 untouched", "L=64 n=8 updated"}));
  for (std::int64_t i = 0; i < 200; ++i) {
    const Example example = task->build(Split::test, i);
    std::map<std::int32_t, std::int32_t> first;
    for (std::size_t pair = 0; pair < 8; ++pair) {
      first[example.row.tokens[2 * pair]] = example.row.tokens[2 * pair + 1];
    }
    EXPECT_EQ(std::ranges::count(example.buckets, 1), 5);
    std::size_t label = 0;
    for (std::size_t t = 0; t < example.row.labels.size(); ++t) {
      if (example.row.labels[t] == kIgnoredLabel) continue;
      const bool updated = example.buckets[label++] == 1;
      EXPECT_EQ(example.row.labels[t] != first.at(example.row.tokens[t]), updated);
    }
  }
}

// Slot j has weight (j+1)^(a-1): with a single pair, the shares of the slots are the weights.
TEST(Mqar, AsksEarlyByThePowerLaw) {
  const auto task =
      make_task("mqar", {{"vocabulary", kV}, {"length", std::int64_t{10}}, {"pairs", std::int64_t{1}}, {"power", 0.5}});
  std::vector<int> count(4);
  constexpr int kExamples = 20000;
  for (std::int64_t i = 0; i < kExamples; ++i) {
    const auto& labels = task->build(Split::train, i).row.labels;
    for (std::size_t j = 0; j < 4; ++j) count[j] += labels[2 + 2 * j] != kIgnoredLabel ? 1 : 0;
  }
  const std::vector<double> weights = {1.0, 0.70711, 0.57735, 0.5};
  double chi_squared = 0.0;
  for (std::size_t j = 0; j < 4; ++j) {
    const double expected = kExamples * weights[j] / 2.78446;
    chi_squared += (count[j] - expected) * (count[j] - expected) / expected;
  }
  EXPECT_LT(chi_squared, 16.3);  // three degrees of freedom, one in a thousand
}

// Also where the weights of late slots are too large for integers as they are.
TEST(Mqar, AsksLateForLargePowers) {
  const auto task = make_task("mqar", {{"vocabulary", std::int64_t{1} << 15},
                                       {"length", std::int64_t{1} << 14},
                                       {"pairs", std::int64_t{4}},
                                       {"power", 8.0}});
  constexpr std::int64_t kExamples = 50;
  double place = 0.0;  // of the questions, as a share of the row: 8/9 for density x^7
  for (std::int64_t i = 0; i < kExamples; ++i) {
    const Row row = task->build(Split::train, i).row;
    ASSERT_EQ(row.valid_labels(), 4);
    for (std::int64_t t = 0; t < row.length(); ++t) {
      if (row.labels[static_cast<std::size_t>(t)] == kIgnoredLabel) continue;
      place += static_cast<double>(t) / static_cast<double>(row.length() * 4 * kExamples);
    }
  }
  EXPECT_NEAR(place, 8.0 / 9.0, 0.03);
}

TEST(Mqar, SaysWhichConstraintIsBroken) {
  EXPECT_EQ(task_error("mqar", small({{"pairs", std::int64_t{17}}})),
            "test.toml:3: [task]: pairs = 17 need 2 pairs (passes + 1) + 2 updates = 68 positions, but length = 64; "
            "lower pairs or raise length");
  EXPECT_THAT(task_error("mqar", small({{"passes", std::int64_t{4}}})), HasSubstr("= 80 positions, but length = 64"));
  EXPECT_EQ(task_error("mqar", small({{"length", std::int64_t{63}}})),
            "test.toml:3: [task]: length = 63 is odd; pairs take two positions each, make it even");
  EXPECT_EQ(task_error("mqar", small({{"vocabulary", std::int64_t{64}}})),
            "test.toml:3: [task]: vocabulary = 64 must be larger than length = 64; use at least 65");
  EXPECT_EQ(task_error("mqar", small({{"updates", std::int64_t{9}}})),
            "test.toml:3: [task]: updates = 9 is more than pairs = 8; at most every key can be updated");
}

}  // namespace
}  // namespace weft
