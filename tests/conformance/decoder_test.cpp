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

std::vector<std::int32_t> some_text(std::int64_t length, std::uint64_t seed) {
  const Tensor bytes = uniform({length}, seed, 0.0, 256.0);
  std::vector<std::int32_t> text;
  for (const double b : bytes.span<double>()) text.push_back(static_cast<std::int32_t>(b));
  return text;
}

// The recipe's model with generic parameters in fp64 and at a place, of one rounding.
struct Models {
  Models(const Recipe& recipe, Target target)
      : exact(language_model_config(recipe, ByteTokenizer::kVocabSize)),
        model(exact.config()),
        place(hostile_place(target)) {
    exact.initialise(1, DType::f64);
    make_generic(exact);
    model.initialise(1, DType::f32);
    for (Parameter* p : model.parameters().all()) p->value.copy_from(exact.parameters().find(p->name)->value);
    if (place.on_cpu()) return;
    // Hostile memory waits for the device, which a recording must not.
    place.arena = std::make_shared<CudaArena>(place.stream, std::size_t{1} << 28);
    model.parameters().move_to(place);
    for (Parameter* p : model.parameters().all()) {
      exact.parameters().find(p->name)->value.copy_from(to_host(p->value, DType::f64, place.stream));
    }
  }

  LanguageModel exact, model;
  Place place;
};

// Each sequence goes on from a prompt of its own length to the end of a text of its own. Logits are as near to fp64 as
// those of the whole text.
void expect_the_whole_texts(Models& models, std::span<const std::int64_t> prompts, std::int64_t steps,
                            Tolerance least) {
  const auto N = static_cast<std::int64_t>(prompts.size());
  std::vector<std::vector<std::int32_t>> texts;
  std::vector<std::int32_t> first, lengths;
  std::vector<Tensor> decoded;
  for (std::int64_t n = 0; n < N; ++n) {
    const std::int64_t prompt = prompts[static_cast<std::size_t>(n)];
    texts.push_back(some_text(prompt + steps, 7 + static_cast<std::uint64_t>(n)));
    first.insert(first.end(), texts.back().begin(), texts.back().begin() + prompt);
    lengths.push_back(static_cast<std::int32_t>(prompt));
    decoded.push_back(Tensor::empty({steps + 1, ByteTokenizer::kVocabSize}, DType::f32));
  }
  Decoder decoder(models.model, models.place, N);
  const auto keep = [&](const Tensor& logits, std::int64_t row) {
    for (std::int64_t n = 0; n < N; ++n) {
      decoded[static_cast<std::size_t>(n)].rows(row, row + 1).copy_from(logits.rows(n, n + 1));
    }
  };
  keep(decoder.prefill(first, Documents::from_lengths(lengths)), 0);
  for (std::int64_t i = 0; i < steps; ++i) {
    std::vector<std::int32_t> next;
    for (std::size_t n = 0; n < texts.size(); ++n) next.push_back(texts[n][static_cast<std::size_t>(prompts[n] + i)]);
    keep(decoder.step(next), i + 1);
  }
  for (std::size_t n = 0; n < texts.size(); ++n) {
    const Tensor expected = logits_of(models.exact, cpu_place(DType::f64), texts[n], prompts[n] - 1);
    const Distance own = distance(logits_of(models.model, models.place, texts[n], prompts[n] - 1), expected);
    EXPECT_TRUE(
        close(decoded[n], expected, std::max(least.forward, 2.0 * own.rel_f), std::max(least.max, 2.0 * own.rel_max)))
        << "sequence " << n;
  }
}

TEST_P(Decoding, EqualsTheWholeText) {
  const MixerTable& table = recipe().mixer(recipe().model.pattern.front());
  if (!table.type->limits.decode.empty()) GTEST_SKIP() << table.type->limits.decode;
  Models models(recipe(), target());
  const std::vector<std::int64_t> prompts = {50, 1, 70};
  // Across the 64 tokens of a cache's page, and for the last sequence across the second.
  expect_the_whole_texts(models, prompts, 80, target().dtype == DType::bf16 ? kBf16Recurrence : kFp32);
}

// Beyond what the table of a cache's pages had room for at first: that moves, so that steps are recorded anew.
TEST(DecoderGpu, RecordsAnewWhereACacheOutgrowsItsTable) {
  WEFT_NEEDS_GPU();
  const std::vector<std::int64_t> prompts = {2, 40};
  for (const char* mixer : {"attention", "mla"}) {
    SCOPED_TRACE(mixer);
    Models models(load_recipe(fmt::format("modules/mixers/{}/tiny.toml", mixer)), {DeviceKind::cuda, DType::f32});
    expect_the_whole_texts(models, prompts, 1100, kFp32);
  }
}

std::string case_name(const ::testing::TestParamInfo<Case>& info) {
  return std::get<0>(info.param).name + "_" + target_name(std::get<1>(info.param));
}
const auto kSubjects = ::testing::ValuesIn(conformance_subjects());
INSTANTIATE_TEST_SUITE_P(Mixers, Decoding,
                         ::testing::Combine(kSubjects, ::testing::Values(Target{DeviceKind::cpu, DType::f32})),
                         case_name);
INSTANTIATE_TEST_SUITE_P(MixersGpu, Decoding,
                         ::testing::Combine(kSubjects, ::testing::Values(Target{DeviceKind::cuda, DType::f32},
                                                                         Target{DeviceKind::cuda, DType::bf16})),
                         case_name);

}  // namespace
}  // namespace weft::testing
