#include "train/evaluate/task_score.h"

#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>
#include <limits>

#include "parallel/threads.h"
#include "train/recipe/recipe.h"

namespace weft {
namespace {

// An untrained model of a few thousand parameters for a task.
class ScoredModel {
 public:
  explicit ScoredModel(const std::string& task) : recipe_(parse_recipe(kRecipe + task, "score.toml")) {
    task_ = make_task(*recipe_.task, 1);
    model_ = std::make_unique<LanguageModel>(language_model_config(recipe_, task_->vocabulary()));
    model_->initialise(5, DType::f32);
  }

  const Task& task() const { return *task_; }
  LanguageModel& model() { return *model_; }

  TaskScore score(std::int64_t examples, Communicator& group, GreedyScoring greedy = GreedyScoring::off) {
    return score_task(*model_, *task_, Split::test, examples, group, cpu_place(), greedy);
  }

 private:
  static inline const std::string kRecipe = R"([run]
steps = 1
[model]
width = 16
layers = 2
pattern = ["attention", "gla"]
ffn = 0
[mixer.attention]
heads = 1
[mixer.gla]
heads = 1
[data]
batch_tokens = 12800
[task]
)";
  Recipe recipe_;
  std::unique_ptr<Task> task_;
  std::unique_ptr<LanguageModel> model_;
};

constexpr const char* kCounter = "name = \"state_tracking\"\ngroup = \"s3\"\ntest_length = 100\nmax_length = 40\n";

// One example at a time, from the logits of all its positions.
TEST(TaskScore, CountsFirstChoices) {
  ScoredModel m(kCounter);
  constexpr std::int64_t kExamples = 60;
  std::vector<Proportion> expected(3);
  std::vector<std::int64_t> right_from_start;
  double loss = 0.0;
  for (std::int64_t i = 0; i < kExamples; ++i) {
    const Example example = m.task().build(Split::test, i);
    const auto T = static_cast<std::size_t>(example.row.length());
    std::vector<std::int64_t> all(T);
    for (std::size_t t = 0; t < T; ++t) all[t] = static_cast<std::int64_t>(t);
    Tape tape(heap_allocator(), Tape::Mode::inference);
    const Tensor logits = m.model().logits_at(tape, Tensor::from({example.row.length()}, example.row.tokens),
                                              Documents::single(example.row.length()), all);
    std::int64_t right = 0;
    for (std::size_t t = 0; t < T; ++t) {
      const auto row = logits.span<float>().subspan(6 * t, 6);
      const auto label = static_cast<std::size_t>(example.row.labels[t]);
      const bool hit = std::ranges::all_of(row, [&](float other) { return other <= row[label]; });
      expected[static_cast<std::size_t>(example.buckets[t])].add(hit);
      if (hit && right == static_cast<std::int64_t>(t)) ++right;
      double sum = 0.0;
      for (const float logit : row) sum += std::exp(static_cast<double>(logit));
      loss += std::log(sum) - static_cast<double>(row[label]);
    }
    right_from_start.push_back(right);
  }
  // The length that nine tenths of the examples reach.
  std::ranges::sort(right_from_start, std::greater<>());
  const std::int64_t reached = right_from_start[static_cast<std::size_t>(0.9 * kExamples) - 1];

  const std::shared_ptr<Communicator> self = self_communicator();
  const TaskScore score = m.score(kExamples, *self);
  ASSERT_EQ(score.buckets.size(), 3u);
  std::int64_t hits = 0;
  for (std::size_t b = 0; b < 3; ++b) {
    EXPECT_EQ(score.buckets[b].labels.hits, expected[b].hits);
    EXPECT_EQ(score.buckets[b].labels.count, expected[b].count);
    EXPECT_EQ(score.buckets[b].exact.count, kExamples);
    hits += expected[b].hits;
  }
  EXPECT_EQ(score.labels.hits, hits);
  EXPECT_EQ(score.labels.count, 100 * kExamples);
  EXPECT_NEAR(score.loss, loss / (100.0 * kExamples), 1e-5);
  EXPECT_EQ(score.longest_exact, reached);
}

// A model that has become NaN gets nothing right, though the first of equal candidates is often an answer.
TEST(TaskScore, NothingIsRightWithoutNumbers) {
  ScoredModel m("name = \"state_tracking\"\ngroup = \"parity\"\ntest_length = 40\n");
  for (Parameter* p : m.model().parameters().all()) {
    std::ranges::fill(p->value.span<float>(), std::numeric_limits<float>::quiet_NaN());
  }
  const std::shared_ptr<Communicator> self = self_communicator();
  const TaskScore score = m.score(10, *self);
  EXPECT_EQ(score.labels.count, 400);
  EXPECT_EQ(score.labels.hits, 0);
  EXPECT_EQ(score.exact.hits, 0);
  EXPECT_EQ(score.longest_exact, 0);
}

TEST(TaskScore, IsTheSameOnAnyNumberOfRanks) {
  const std::shared_ptr<Communicator> self = self_communicator();
  ScoredModel alone(kCounter);
  const TaskScore one = alone.score(130, *self);
  run_ranks(3, [&](Communicator& group) {
    ScoredModel m(kCounter);
    const TaskScore three = m.score(130, group);
    EXPECT_EQ(three.labels.hits, one.labels.hits);
    EXPECT_EQ(three.labels.count, one.labels.count);
    EXPECT_EQ(three.exact.count, one.exact.count);
    EXPECT_EQ(three.longest_exact, one.longest_exact);
    EXPECT_NEAR(three.loss, one.loss, 1e-12);
  });
}

// A greedy continuation begins with the answer exactly when every label is the first choice; it may also hold it later.
TEST(TaskScore, GreedyDecodingFindsWhatTeacherForcingDoes) {
  ScoredModel m("name = \"passkey\"\nlength = 200\ndigits = 1\ndepths = 2\n");
  const std::shared_ptr<Communicator> self = self_communicator();
  const TaskScore score = m.score(40, *self, GreedyScoring::on);
  EXPECT_EQ(score.greedy.count, 40);
  EXPECT_GE(score.greedy.hits, score.exact.hits);
  EXPECT_EQ(score.exact.hits, score.labels.hits) << "answers have one digit";
  EXPECT_FALSE(score.longest_exact);
  EXPECT_EQ(score.buckets.size(), 2u);
  EXPECT_EQ(score.buckets[0].greedy.count, 20);
}

}  // namespace
}  // namespace weft
