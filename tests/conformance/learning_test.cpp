// Every mixer inside a whole model: it learns, and its checkpoint brings it back.

#include <cmath>
#include <gtest/gtest.h>

#include "checkpoints/reader.h"
#include "checkpoints/writer.h"
#include "data/tokenizers/byte_tokenizer.h"
#include "tests/conformance/subject.h"
#include "tests/integration/program.h"
#include "tests/support/compare.h"
#include "train/loop/training_state.h"
#include "train/optimizers/gradient_norm.h"

namespace weft::testing {
namespace {

// A model of a tiny recipe, trained again and again on one row of two documents of random bytes.
class Student {
 public:
  Student(const Recipe& recipe, std::uint64_t seed)
      : recipe_(recipe),
        model_(language_model_config(recipe, ByteTokenizer::kVocabSize)),
        policy_(OnNonfinite::stop, 3) {
    model_.initialise(seed, DType::f32);
    optimizer_.emplace(model_.parameters().all(), optimizer_options(recipe));
    constexpr std::int64_t T = 96;
    const Tensor bytes = uniform({T + 1}, 3, 0.0, 256.0);
    tokens_ = Tensor::empty({T}, DType::i32);
    labels_ = Tensor::empty({T}, DType::i32);
    for (std::int64_t t = 0; t < T; ++t) {
      tokens_.data<std::int32_t>()[t] = static_cast<std::int32_t>(bytes.data<double>()[t]);
      labels_.data<std::int32_t>()[t] = static_cast<std::int32_t>(bytes.data<double>()[t + 1]);
    }
    documents_ = Documents::from_lengths(std::vector<std::int32_t>{60, 36});
  }

  // The loss before the update.
  double step() {
    Tape tape(memory_);
    const LossTerms terms =
        model_.loss(tape, tokens_, documents_, labels_, {}, {.denominator = 96.0, .token_losses = {}});
    const LossSums sums = read_loss_sums(terms.sums, tape.stream());
    tape.backward(terms.loss, Tensor::from({1}, std::vector<float>{1.0F}));
    const GradientNorm norm = gradient_norm(optimizer_->trainable());
    optimizer_->update(1.0, clip_factor(norm.norm, recipe_.optimizer.clip), GradientsAfter::zero);
    progress_.step += 1;
    return sums.loss / 96.0;
  }

  TrainingParts parts() { return {place_, model_, *optimizer_, guard_, policy_, progress_}; }
  LanguageModel& model() { return model_; }

 private:
  Recipe recipe_;
  Place place_ = cpu_place();
  LanguageModel model_;
  std::optional<Optimizer> optimizer_;
  SpikeGuard guard_;
  NonfinitePolicy policy_;
  TrainingProgress progress_;
  std::shared_ptr<Allocator> memory_ = heap_allocator(Hygiene::hostile);
  Tensor tokens_, labels_;
  DocumentsPtr documents_;
};

class Learning : public ::testing::TestWithParam<Subject> {};

TEST_P(Learning, OverfitsItsTinyRecipe) {
  Student student(GetParam().recipe, 1);
  const double first = student.step();
  EXPECT_NEAR(first, std::log(257.0), 0.5) << "an untrained model guesses";
  double loss = first;
  for (std::int64_t s = 1; s < GetParam().recipe.run.steps; ++s) loss = student.step();
  EXPECT_LT(loss, 0.1) << "after " << GetParam().recipe.run.steps << " steps on one row";
}

TEST_P(Learning, ACheckpointBringsItBackBitForBit) {
  const Workspace workspace;
  Student student(GetParam().recipe, 1);
  for (int s = 0; s < 3; ++s) student.step();
  SingleProcess group;
  SaveOptions options;
  options.spare_bytes = 0;
  const SaveResult saved =
      save_checkpoint(workspace.path(), take_snapshot(student.parts(), 0, 1).state, group, options);
  ASSERT_TRUE(saved.saved) << saved.failure;

  Student other(GetParam().recipe, 2);
  load_training_state(CheckpointReader(saved.directory), other.parts());
  for (int s = 0; s < 2; ++s) EXPECT_EQ(other.step(), student.step());
  const std::vector<Parameter*> a = student.model().parameters().all(), b = other.model().parameters().all();
  for (std::size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(bitwise_equal(b[i]->value, a[i]->value)) << a[i]->name;
}

INSTANTIATE_TEST_SUITE_P(Mixers, Learning, ::testing::ValuesIn(conformance_subjects()), subject_name);

}  // namespace
}  // namespace weft::testing
