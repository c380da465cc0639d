// Every mixer inside a whole model that goes on from a prompt token by token: on a GPU with steps that are recorded
// once and replayed, while caches grow.

#include "train/generate/decoder.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <tuple>

#include "autograd/cuda/cuda_memory.h"
#include "autograd/transfer.h"
#include "data/tokenizers/byte_tokenizer.h"
#include "tests/conformance/subject.h"
#include "tests/support/compare.h"

namespace weft::testing {
namespace {

using Case = std::tuple<Subject, Target>;

class Decoding : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (target().device == DeviceKind::cuda) WEFT_NEEDS_GPU();
  }
  const Recipe& recipe() const { return std::get<0>(GetParam()).recipe; }
  const Target& target() const { return std::get<1>(GetParam()); }
};

// Projections of unit gain and noise on everything else, in numbers that f32 holds.
void make_generic(LanguageModel& model) {
  std::uint64_t seed = 100;
  for (Parameter* p : model.parameters().all()) {
    const bool matrix = p->shape.rank() >= 2;
    const Tensor noise = normal(p->shape, ++seed, matrix ? 1.0 / std::sqrt(static_cast<double>(p->shape.back())) : 0.1);
    const Tensor value = cast(p->value, DType::f64);
    for (std::int64_t i = 0; i < noise.numel(); ++i) {
      if (!matrix) noise.data<double>()[i] += value.data<double>()[i];
    }
    p->value.copy_from(cast(noise, DType::f32));
  }
}

Tensor logits_of(LanguageModel& model, const Place& place, std::span<const std::int32_t> text, std::int64_t from) {
  Tape tape(place.arena, Tape::Mode::inference, place.stream);
  const auto T = static_cast<std::int64_t>(text.size());
  std::vector<std::int64_t> positions(static_cast<std::size_t>(T - from));
  std::iota(positions.begin(), positions.end(), from);
  return to_host(model.logits_at(tape, tape.here(Tensor::from({T}, text)), Documents::single(T), positions),
                 place.stream)
      .clone();
}

TEST_P(Decoding, EqualsTheWholeText) {
  const MixerTable& table = recipe().mixer(recipe().model.pattern.front());
  if (!table.type->limits.decode.empty()) GTEST_SKIP() << table.type->limits.decode;
  const LanguageModelConfig config = language_model_config(recipe(), ByteTokenizer::kVocabSize);
  LanguageModel exact(config), model(config);
  exact.initialise(1, DType::f64);
  make_generic(exact);
  model.initialise(1, DType::f32);
  for (Parameter* p : model.parameters().all()) p->value.copy_from(exact.parameters().find(p->name)->value);
  Place place = hostile_place(target());
  // Hostile memory waits for the device, which a recording must not.
  if (!place.on_cpu()) place.arena = std::make_shared<CudaArena>(place.stream, std::size_t{1} << 28);
  if (!place.on_cpu()) model.parameters().move_to(place);

  constexpr std::int64_t kPrompt = 50, kText = 200;
  const Tensor bytes = uniform({kText}, 7, 0.0, 256.0);
  std::vector<std::int32_t> text;
  for (const double b : bytes.span<double>()) text.push_back(static_cast<std::int32_t>(b));

  const Tensor expected = logits_of(exact, cpu_place(DType::f64), text, kPrompt - 1);
  const Distance own = distance(logits_of(model, place, text, kPrompt - 1), expected);
  Decoder decoder(model, place, 1);
  const Tensor decoded = Tensor::empty(expected.shape(), DType::f32);
  decoded.rows(0, 1).copy_from(decoder.prefill(std::span(text).first(kPrompt), Documents::single(kPrompt)));
  for (std::int64_t t = kPrompt; t < kText; ++t) {
    const std::int64_t row = t - kPrompt + 1;
    decoded.rows(row, row + 1).copy_from(decoder.step(std::span(text).subspan(static_cast<std::size_t>(t), 1)));
  }
  EXPECT_TRUE(
      close(decoded, expected, std::max(kFp32.forward, 2.0 * own.rel_f), std::max(kFp32.max, 2.0 * own.rel_max)));
}

std::string case_name(const ::testing::TestParamInfo<Case>& info) {
  return std::get<0>(info.param).name + "_" + target_name(std::get<1>(info.param));
}
const auto kSubjects = ::testing::ValuesIn(conformance_subjects());
INSTANTIATE_TEST_SUITE_P(Mixers, Decoding,
                         ::testing::Combine(kSubjects, ::testing::Values(Target{DeviceKind::cpu, DType::f32})),
                         case_name);
INSTANTIATE_TEST_SUITE_P(MixersGpu, Decoding,
                         ::testing::Combine(kSubjects, ::testing::Values(Target{DeviceKind::cuda, DType::f32})),
                         case_name);

}  // namespace
}  // namespace weft::testing
