#include <algorithm>
#include <array>
#include <gmock/gmock.h>
#include <numeric>
#include <set>

#include "data/synthetic/task_test_support.h"

namespace weft {
namespace {

using data_test::make_task;
using data_test::task_error;
using ::testing::HasSubstr;

constexpr std::array kSplits = {Split::train, Split::validation, Split::test};

// All permutations of `points` points in lexicographic order, the even ones alone if asked for.
std::vector<std::vector<int>> permutations(int points, bool even) {
  std::vector<std::vector<int>> all;
  std::vector<int> p(static_cast<std::size_t>(points));
  std::iota(p.begin(), p.end(), 0);
  do {
    int inversions = 0;
    for (int i = 0; i < points; ++i) {
      for (int j = 0; j < i; ++j) inversions += p[static_cast<std::size_t>(j)] > p[static_cast<std::size_t>(i)] ? 1 : 0;
    }
    if (!even || inversions % 2 == 0) all.push_back(p);
  } while (std::next_permutation(p.begin(), p.end()));
  return all;
}

// Follows where every point goes, one input after the other.
data_test::Solver following_points(int points, bool even) {
  const auto elements = permutations(points, even);
  return [=](const std::vector<std::int32_t>& tokens) {
    std::vector<int> images = elements[0];
    std::vector<std::int32_t> labels;
    for (const std::int32_t token : tokens) {
      for (int& image : images) image = elements[static_cast<std::size_t>(token)][static_cast<std::size_t>(image)];
      labels.push_back(static_cast<std::int32_t>(std::ranges::find(elements, images) - elements.begin()));
    }
    return labels;
  };
}

data_test::Solver adding(std::int32_t modulus) {
  return [=](const std::vector<std::int32_t>& tokens) {
    std::vector<std::int32_t> labels;
    std::int32_t sum = 0;
    for (const std::int32_t token : tokens) labels.push_back(sum = (sum + token) % modulus);
    return labels;
  };
}

TEST(StateTracking, IsSolvedStepByStep) {
  struct Case {
    std::string group;
    std::int64_t elements;
    data_test::Solver solver;
  };
  const std::vector<Case> cases = {{"parity", 2, adding(2)},
                                   {"counter", 5, adding(5)},
                                   {"s3", 6, following_points(3, false)},
                                   {"a5", 60, following_points(5, true)},
                                   {"s5", 120, following_points(5, false)},
                                   {"s5_swaps", 120, following_points(5, false)}};
  for (const Case& c : cases) {
    const auto task = make_task("state_tracking", {{"group", c.group}, {"test_length", std::int64_t{100}}});
    EXPECT_EQ(task->vocabulary(), c.elements);
    EXPECT_TRUE(task->runs_along());
    for (const Split split : kSplits) data_test::expect_solved(*task, split, 40, c.solver);
  }
}

TEST(StateTracking, SwapsExchangeTwoPoints) {
  const auto task = make_task("state_tracking", {{"group", std::string("s5_swaps")}});
  const auto elements = permutations(5, false);
  std::set<std::int32_t> seen;
  for (std::int64_t i = 0; i < 40; ++i) {
    const Row row = task->build(Split::train, i).row;
    seen.insert(row.tokens.begin(), row.tokens.begin() + row.cu_seqlens[1]);
  }
  EXPECT_EQ(seen.size(), 10u);
  for (const std::int32_t token : seen) {
    const auto& p = elements[static_cast<std::size_t>(token)];
    int moved = 0;
    for (int i = 0; i < 5; ++i) moved += p[static_cast<std::size_t>(i)] != i ? 1 : 0;
    EXPECT_EQ(moved, 2);
  }
}

TEST(StateTracking, TrainsOnAllLengthsAndTestsAtTheLongest) {
  const auto task = make_task("state_tracking");
  std::set<std::int32_t> lengths;
  for (std::int64_t i = 0; i < 2000; ++i) lengths.insert(task->build(Split::train, i).row.cu_seqlens[1]);
  EXPECT_EQ(*lengths.begin(), 3);
  EXPECT_EQ(*lengths.rbegin(), 40);
  EXPECT_EQ(lengths.size(), 38u);
  EXPECT_EQ(task->buckets(), (std::vector<std::string>{"1-40", "41-80", "81-160", "161-320", "321-500"}));
  const Example example = task->build(Split::test, 0);
  EXPECT_EQ(example.row.length(), 500);
  for (const auto& [position, bucket] : {std::pair{0, 0}, {39, 0}, {40, 1}, {79, 1}, {80, 2}, {320, 4}, {499, 4}}) {
    EXPECT_EQ(example.buckets[static_cast<std::size_t>(position)], bucket) << position;
  }
}

TEST(StateTracking, RefusesLengthsThatContradictEachOther) {
  EXPECT_EQ(task_error("state_tracking", {{"min_length", std::int64_t{41}}}),
            "test.toml:3: [task]: min_length = 41 is more than max_length = 40");
  EXPECT_THAT(task_error("state_tracking", {{"test_length", std::int64_t{20}}}),
              HasSubstr("test_length = 20 is less than max_length = 40"));
}

}  // namespace
}  // namespace weft
