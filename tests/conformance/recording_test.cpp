// Every mixer inside a whole model that is trained on rows of different documents: on a GPU a step that was recorded
// once gives, for any row of its form, the bits of one that is launched kernel by kernel.

#include <algorithm>
#include <array>
#include <tuple>

#include "autograd/cuda/cuda_memory.h"
#include "autograd/transfer.h"
#include "data/tokenizers/byte_tokenizer.h"
#include "tests/conformance/subject.h"
#include "tests/support/compare.h"
#include "train/loop/step_engine.h"

namespace weft::testing {
namespace {

using Case = std::tuple<Subject, Target>;
class Recording : public ::testing::TestWithParam<Case> {};

constexpr std::int32_t kTokens = 256;
// The exceptions: how much work follows one after the other depends on the longest document.
constexpr std::array<std::string_view, 2> kLaunchedOneByOne = {"titans_mac", "titans_deep"};

Batch row_of(std::vector<std::int32_t> lengths, std::uint64_t seed) {
  const Tensor bytes = uniform({kTokens + 1}, seed, 0.0, 256.0);
  Batch batch{.tokens = Tensor::empty({kTokens}, DType::i32),
              .labels = Tensor::empty({kTokens}, DType::i32),
              .weights = {},
              .documents = Documents::from_lengths(lengths)};
  for (std::int64_t t = 0; t < kTokens; ++t) {
    batch.tokens.data<std::int32_t>()[t] = static_cast<std::int32_t>(bytes.data<double>()[t]);
    batch.labels.data<std::int32_t>()[t] = static_cast<std::int32_t>(bytes.data<double>()[t + 1]);
  }
  return batch;
}

// One form: three or four documents. The first leaves the least to those after it, so that tables must grow; others
// have documents shorter than any block, and one that nearly fills the row.
std::vector<Batch> rows_of_one_form() {
  return {row_of({90, 86, 80}, 11), row_of({1, 2, 250, 3}, 12), row_of({64, 64, 64, 64}, 13), row_of({7, 200, 49}, 14),
          row_of({250, 2, 1, 3}, 15)};
}

struct Step {
  LossSums sums;
  std::vector<Tensor> gradients;
};

Step step(LanguageModel& model, const Place& place, StepEngine& engine, const Batch& batch) {
  model.parameters().zero_gradients(place.stream);
  PhaseClock clock;
  engine.begin(kTokens);
  engine.accumulate(batch, clock);
  Step result{engine.sums(), {}};
  for (Parameter* p : model.parameters().all()) result.gradients.push_back(to_host(p->grad, place.stream).clone());
  return result;
}

TEST_P(Recording, ServesEveryRowOfItsForm) {
  const auto& [subject, target] = GetParam();
  WEFT_NEEDS_GPU();
  Place place = hostile_place(target);
  place.arena =
      std::make_shared<CudaArena>(place.stream, std::size_t{1} << 30);  // a hostile one waits, which is barred
  LanguageModel model(language_model_config(subject.recipe, ByteTokenizer::kVocabSize));
  model.initialise(1, place);
  const std::string reason = model.not_recordable();
  ASSERT_EQ(!reason.empty(), std::ranges::find(kLaunchedOneByOne, subject.name) != kLaunchedOneByOne.end()) << reason;
  if (!reason.empty()) GTEST_SKIP() << reason;

  const std::vector<Batch> rows = rows_of_one_form();
  StepEngine recorded(model, place, StepEngineOptions{.graphs = true});
  for (std::size_t i = 0; i < rows.size(); ++i) {
    SCOPED_TRACE(fmt::format("row {}", i));
    const Step own = step(model, place, recorded, rows[i]);
    StepEngine direct(model, place, StepEngineOptions{.graphs = false});
    const Step expected = step(model, place, direct, rows[i]);
    EXPECT_GT(own.sums.loss, 0.0);
    EXPECT_EQ(own.sums.loss, expected.sums.loss);
    for (std::size_t p = 0; p < own.gradients.size(); ++p) {
      EXPECT_TRUE(bitwise_equal(own.gradients[p], expected.gradients[p])) << model.parameters().all()[p]->name;
    }
  }
}

std::string case_name(const ::testing::TestParamInfo<Case>& info) {
  return std::get<0>(info.param).name + "_" + target_name(std::get<1>(info.param));
}

INSTANTIATE_TEST_SUITE_P(MixersGpu, Recording,
                         ::testing::Combine(::testing::ValuesIn(conformance_subjects()),
                                            ::testing::Values(Target{DeviceKind::cuda, DType::f32},
                                                              Target{DeviceKind::cuda, DType::bf16})),
                         case_name);

}  // namespace
}  // namespace weft::testing
