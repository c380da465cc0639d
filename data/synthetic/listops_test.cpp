#include <algorithm>
#include <gmock/gmock.h>
#include <numeric>

#include "data/synthetic/task_test_support.h"

namespace weft {
namespace {

using data_test::make_task;
using data_test::task_error;
using ::testing::HasSubstr;

constexpr std::int32_t kMin = 10, kMax = 11, kMed = 12, kSum = 13, kClose = 14, kQuery = 15;

// Evaluates with a stack, and checks depths and numbers of arguments.
std::int32_t evaluate(const std::vector<std::int32_t>& tokens) {
  struct Open {
    std::int32_t op;
    std::vector<std::int32_t> arguments;
  };
  std::vector<Open> stack(1);
  for (const std::int32_t token : tokens) {
    if (token < 10) {
      stack.back().arguments.push_back(token);
    } else if (token < kClose) {
      stack.push_back({token, {}});
      EXPECT_LE(stack.size(), 10u) << "depth 10 has digits only";
    } else if (token == kClose) {
      auto [op, values] = stack.back();
      stack.pop_back();
      EXPECT_GE(values.size(), 2u);
      EXPECT_LE(values.size(), 10u);
      std::ranges::sort(values);
      const std::size_t n = values.size();
      std::int32_t value = op == kMin ? values.front() : values.back();
      if (op == kMed) value = (values[(n - 1) / 2] + values[n / 2]) / 2;
      if (op == kSum) value = std::accumulate(values.begin(), values.end(), 0) % 10;
      EXPECT_TRUE(op >= kMin && op <= kSum && (op != kMax || value == values.back()));
      stack.back().arguments.push_back(value);
    }
  }
  EXPECT_EQ(stack.size(), 1u);
  EXPECT_EQ(stack[0].arguments.size(), 1u);
  return stack[0].arguments[0];
}

TEST(ListOps, IsSolvedByEvaluation) {
  const auto task = make_task("listops");
  EXPECT_EQ(task->row_length(), 2000);
  for (const Split split : {Split::train, Split::validation, Split::test}) {
    data_test::expect_solved(*task, split, 60, [](const std::vector<std::int32_t>& tokens) {
      EXPECT_GT(tokens.size() - 1, 500u);
      EXPECT_LT(tokens.size() - 1, 2000u);
      EXPECT_EQ(tokens.back(), kQuery);
      std::vector<std::int32_t> labels(tokens.size(), kIgnoredLabel);
      labels.back() = evaluate({tokens.begin(), tokens.end() - 1});
      return labels;
    });
  }
}

// The floor: always the most frequent answer, which the literature gives as about 0.17.
TEST(ListOps, TheMostFrequentAnswerIsRightForASixth) {
  const auto task = make_task("listops");
  constexpr int kExamples = 2000;
  std::vector<int> answers(10);
  for (std::int64_t i = 0; i < kExamples; ++i) {
    const Row row = task->build(Split::test, i).row;
    for (const std::int32_t label : row.labels) {
      if (label != kIgnoredLabel) ++answers[static_cast<std::size_t>(label)];
    }
  }
  const auto most = std::ranges::max_element(answers);
  RecordProperty("majority", *most);
  EXPECT_THAT(most - answers.begin(), ::testing::AnyOf(0, 9));
  EXPECT_NEAR(*most / static_cast<double>(kExamples), 0.17, 0.025);
}

TEST(ListOps, RefusesBandsThatAreTooNarrow) {
  EXPECT_THAT(task_error("listops", {{"min_length", std::int64_t{1995}}}),
              HasSubstr("max_length = 2000 must be at least 10 more than min_length = 1995"));
  data_test::expect_solved(*make_task("listops", {{"min_length", std::int64_t{0}}, {"max_length", std::int64_t{24}}}),
                           Split::train, 50, [](const std::vector<std::int32_t>& tokens) {
                             std::vector<std::int32_t> labels(tokens.size(), kIgnoredLabel);
                             labels.back() = evaluate({tokens.begin(), tokens.end() - 1});
                             return labels;
                           });
}

}  // namespace
}  // namespace weft
