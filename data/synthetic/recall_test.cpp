// Copying, induction and passkeys.
#include <algorithm>
#include <gmock/gmock.h>
#include <string>

#include "data/synthetic/task_test_support.h"
#include "data/tokenizers/tokenizer.h"

namespace weft {
namespace {

using data_test::expect_solved;
using data_test::make_task;
using data_test::task_error;
using ::testing::HasSubstr;

constexpr std::array kSplits = {Split::train, Split::validation, Split::test};

TEST(Copy, IsSolvedByReadingBack) {
  const auto task = make_task("copy", {{"symbols", std::int64_t{12}}, {"test_length", std::int64_t{50}}});
  EXPECT_EQ(task->buckets(), (std::vector<std::string>{"n=12", "n=24", "n=48"}));
  EXPECT_EQ(task->vocabulary(), 27);
  for (const Split split : kSplits) {
    expect_solved(*task, split, 60, [](const std::vector<std::int32_t>& tokens) {
      const std::size_t n = tokens.size() / 2;
      EXPECT_EQ(tokens[n], 26);
      std::vector<std::int32_t> labels(tokens.size(), kIgnoredLabel);
      for (std::size_t i = 0; i < n; ++i) labels[n + i] = tokens[i];
      return labels;
    });
  }
  EXPECT_EQ(task->build(Split::test, 2).row.length(), 96) << "tests take their lengths in turn";
  EXPECT_THAT(task_error("copy", {{"symbols", std::int64_t{12}}, {"test_length", std::int64_t{6}}}),
              HasSubstr("test_length = 6 is shorter than training, 12"));
}

TEST(SelectiveCopy, IsSolvedByLeavingTheNoiseOut) {
  const auto task = make_task("selective_copy", {{"length", std::int64_t{64}},
                                                 {"symbols", std::int64_t{5}},
                                                 {"alphabet", std::int64_t{6}},
                                                 {"test_length", std::int64_t{128}}});
  for (const Split split : kSplits) {
    expect_solved(*task, split, 100, [](const std::vector<std::int32_t>& tokens) {
      std::vector<std::int32_t> labels;
      for (const std::int32_t token : tokens) {
        if (token < 6) labels.push_back(token);
      }
      EXPECT_EQ(labels.size(), 5u);
      labels.insert(labels.begin(), tokens.size() - labels.size(), kIgnoredLabel);
      return labels;
    });
  }
  EXPECT_THAT(task_error("selective_copy", {{"length", std::int64_t{4}}}),
              HasSubstr("symbols = 16 do not fit into length = 4"));
}

TEST(Induction, IsSolvedByWhatFollowedTheSpecialToken) {
  const auto task = make_task("induction", {{"length", std::int64_t{32}}, {"test_length", std::int64_t{64}}});
  for (const Split split : kSplits) {
    expect_solved(*task, split, 200, [](const std::vector<std::int32_t>& tokens) {
      const auto special = std::ranges::find(tokens, 16);
      EXPECT_LT(special - tokens.begin(), static_cast<std::ptrdiff_t>(tokens.size() / 2));
      EXPECT_EQ(std::ranges::count(tokens, 16), 2);
      EXPECT_EQ(tokens.back(), 16);
      std::vector<std::int32_t> labels(tokens.size(), kIgnoredLabel);
      labels.back() = special[1];
      return labels;
    });
  }
}

TEST(Passkey, HidesTheNumberAtItsDepth) {
  const auto task = make_task("passkey", {{"length", std::int64_t{512}}, {"test_length", std::int64_t{1024}}});
  ASSERT_EQ(task->tokenizer(), "byte");
  const auto tokenizer = make_tokenizer("byte");
  const std::vector<std::string> buckets = task->buckets();
  ASSERT_EQ(buckets.size(), 22u);
  EXPECT_EQ(buckets.front(), "L=512 depth=0.00");
  EXPECT_EQ(buckets[12], "L=1024 depth=0.10");
  for (std::int64_t i = 0; i < 44; ++i) {
    const Example example = task->build(Split::test, i);
    const std::int64_t length = i % 22 < 11 ? 512 : 1024;
    EXPECT_EQ(example.row.length(), length);
    EXPECT_GT(example.row.cu_seqlens[1], length - 32) << "filled up to within a sentence";
    std::vector<std::int32_t> answer;
    for (const std::int32_t label : example.row.labels) {
      if (label != kIgnoredLabel) answer.push_back(label);
    }
    const std::string number = tokenizer->decode(answer);
    EXPECT_EQ(number.size(), 5u);
    EXPECT_NE(number[0], '0');
    const std::string text = tokenizer->decode(example.row.tokens);
    const std::size_t at = text.find("The hidden number is " + number + ". ");
    ASSERT_NE(at, std::string::npos) << text;
    // Of the filler, whose sentences are some 30 tokens long.
    const double depth = static_cast<double>(i % 11) / 10.0;
    EXPECT_NEAR(static_cast<double>(at - 48) / static_cast<double>(length - 160), depth, 0.1) << i;
    EXPECT_EQ(example.buckets, std::vector<std::int32_t>(5, static_cast<std::int32_t>(i % 22)));
  }
}

TEST(Passkey, IsSolvedByReadingTheNumber) {
  const auto task = make_task("passkey", {{"length", std::int64_t{256}}, {"digits", std::int64_t{7}}});
  const auto tokenizer = make_tokenizer("byte");
  for (const Split split : kSplits) {
    expect_solved(*task, split, 40, [&](const std::vector<std::int32_t>& tokens) {
      const std::string text = tokenizer->decode(tokens);
      const std::string number = text.substr(text.find_first_of("123456789"), 7);
      std::vector<std::int32_t> labels(tokens.size(), kIgnoredLabel);
      for (std::size_t i = 0; i < 7; ++i) labels[tokens.size() - 7 + i] = number[i];
      return labels;
    });
  }
  EXPECT_EQ(task_error("passkey", {{"length", std::int64_t{64}}}),
            "test.toml:3: [task]: length = 64 is too short for the hidden number and the question; 140 tokens are "
            "needed");
}

}  // namespace
}  // namespace weft
