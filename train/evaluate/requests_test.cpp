#include "train/evaluate/requests.h"

#include <cmath>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "checkpoints/huggingface/common_fields.h"
#include "checkpoints/huggingface/export.h"
#include "data/dataset_test_support.h"
#include "data/tokenizers/byte_tokenizer.h"

namespace weft {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<std::int32_t> bytes(const std::string& text) {
  return {text.begin(), text.end()};
}

TEST(ScoreRequests, GiveTrailingSpacesToTheContinuation) {
  const ByteTokenizer tokenizer;
  const EncodedRequest plain = encode_request({"ab", " c"}, tokenizer);
  EXPECT_EQ(plain.context, bytes("ab"));
  EXPECT_EQ(plain.continuation, bytes(" c"));
  const EncodedRequest spaces = encode_request({"ab \n", "c"}, tokenizer);
  EXPECT_EQ(spaces.context, bytes("ab"));
  EXPECT_EQ(spaces.continuation, bytes(" \nc"));
  // A no-break space, two bytes long.
  EXPECT_EQ(encode_request({"ab\u00a0", "c"}, tokenizer).continuation.size(), 3U);
}

TEST(ScoreRequests, BeginAnEmptyContextAsADocument) {
  const EncodedRequest encoded = encode_request({"", "ab"}, ByteTokenizer());
  EXPECT_THAT(encoded.context, ElementsAre(ByteTokenizer::kEos));
  EXPECT_EQ(encoded.continuation, bytes("ab"));
}

class ScoreRequestsTest : public ::testing::Test {
 protected:
  ScoreRequestsTest() : model_(config()) { model_.initialise(5, DType::f32); }

  static LanguageModelConfig config() {
    return {.vocabulary = 257,
            .width = 8,
            .layers = 1,
            .ffn_hidden = 0,
            .pattern = {mixer_choice("attention", {{"heads", std::int64_t{2}}}, "test")}};
  }

  std::vector<ContinuationScore> scores(const std::vector<ScoreRequest>& requests, std::int64_t max_length) {
    std::vector<ContinuationScore> all;
    score_requests(model_, cpu_place(), tokenizer_, requests, max_length,
                   [&](const ContinuationScore& s) { all.push_back(s); });
    return all;
  }

  // The probability of a text's last `count` tokens after those before them, plainly.
  double expected(const std::vector<std::int32_t>& ids, std::size_t count) {
    const Tensor logits = logits_of(model_, std::span(ids).first(ids.size() - 1));
    const std::span<const float> all = logits.span<float>();
    double sum = 0.0;
    for (std::size_t t = ids.size() - count; t < ids.size(); ++t) {
      double total = 0.0;
      for (std::size_t v = 0; v < 257; ++v) total += std::exp(static_cast<double>(all[(t - 1) * 257 + v]));
      sum += static_cast<double>(all[(t - 1) * 257 + static_cast<std::size_t>(ids[t])]) - std::log(total);
    }
    return sum;
  }

  ByteTokenizer tokenizer_;
  LanguageModel model_;
};

TEST_F(ScoreRequestsTest, AreSumsOfLogProbabilities) {
  const std::vector<ContinuationScore> found = scores({{"the cat", " sat"}, {"", "x"}, {"a", "bcdef"}}, 64);
  ASSERT_EQ(found.size(), 3U);
  EXPECT_NEAR(found[0].log_likelihood, expected(bytes("the cat sat"), 4), 1e-5);
  EXPECT_NEAR(found[1].log_likelihood, expected({256, 'x'}, 1), 1e-5);
  EXPECT_NEAR(found[2].log_likelihood, expected(bytes("abcdef"), 5), 1e-5);
  EXPECT_EQ(found[2].tokens, 5);
}

TEST_F(ScoreRequestsTest, AreGreedyIfEveryTokenIsTheMostLikely) {
  const Tensor logits = logits_of(model_, bytes("ab"));
  const std::span<const float> last = logits.span<float>().subspan(257, 257);
  const auto best = static_cast<char>(std::ranges::max_element(last.first(256)) - last.begin());
  ASSERT_LT(last[256], last[static_cast<unsigned char>(best)]);
  // Bytes from 128 on are not valid text by themselves; this seed gives none.
  ASSERT_GE(best, '!');
  const char other = best == 'q' ? 'r' : 'q';
  const std::vector<ContinuationScore> found = scores({{"ab", {best}}, {"ab", {other}}}, 64);
  EXPECT_TRUE(found[0].is_greedy);
  EXPECT_FALSE(found[1].is_greedy);
}

TEST_F(ScoreRequestsTest, LoseTheBeginningOfWhatIsTooLong) {
  // Inputs are all tokens but the last: "cde" of "abcdef".
  EXPECT_NEAR(scores({{"abcd", "ef"}}, 3)[0].log_likelihood, expected(bytes("cdef"), 2), 1e-5);
  try {
    scores({{"a", "b"}, {"ab", "cdef"}}, 3);
    ADD_FAILURE() << "a continuation of 4 tokens in 3";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "request 2: its continuation has 4 tokens; expected 1 to 3");
  }
}

TEST(ScoreRequests, AreReadLineByLine) {
  const data_test::TemporaryFolder folder;
  const std::string path = folder / "requests.jsonl";
  data_test::write_text(path,
                        "{\"context\": \"a\", \"continuation\": \"b\", \"more\": 1}\n\n{\"context\": \"\", "
                        "\"continuation\": \"c\"}\n");
  const std::vector<ScoreRequest> requests = read_requests(path);
  ASSERT_EQ(requests.size(), 2U);
  EXPECT_EQ(requests[0].context + requests[0].continuation + requests[1].continuation, "abc");
  data_test::write_text(path, "{\"context\": \"a\", \"continuation\": \"b\"}\n{\"context\": 1}\n");
  try {
    read_requests(path);
    ADD_FAILURE() << "a number as context";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("requests.jsonl:2"));
  }
}

}  // namespace
}  // namespace weft
