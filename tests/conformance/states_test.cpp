// What a mixer remembers between calls: a document in pieces, and token by token, is the document in one go, on every
// device and in every type.

#include <algorithm>
#include <tuple>

#include "tests/conformance/subject.h"
#include "tests/support/compare.h"

namespace weft::testing {
namespace {

using Case = std::tuple<Subject, Target>;

Tensor copy(const Tensor& t) {
  return cast(t, t.dtype());
}

// One layer, what fp64 makes of whole documents with the same rounded parameters and inputs, and how far from it
// pieces may be: as the tolerances say, or where a chain of updates or a choice of blocks magnifies rounding, twice as
// far as the layer itself is when it gets the document in one go.
class States : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (target().device == DeviceKind::cuda) WEFT_NEEDS_GPU();
  }
  const Target& target() const { return std::get<1>(GetParam()); }
  const MixerLimits& limits() const {
    const Recipe& recipe = std::get<0>(GetParam()).recipe;
    return recipe.mixer(recipe.model.pattern.front()).type->limits;
  }

  struct Sequence {
    Tensor x, expected;
    Distance limit;
  };
  Sequence sequence(Layer& layer, std::int64_t tokens, std::uint64_t seed) const {
    const Tensor x = cast(normal({tokens, layer.width()}, seed), target().dtype);
    const DocumentsPtr document = Documents::single(tokens);
    const Tensor whole = layer.forward(x, document);
    if (target().dtype == DType::f64) return {x, whole, {1e-12, 1e-10}};
    Layer exact = layer.exact();
    const Tensor expected = exact.forward(cast(x, DType::f64), document);
    const Tolerance& tolerance = target().dtype == DType::f32 ? kFp32 : kBf16Recurrence;
    const Distance own = distance(whole, expected);
    return {x, expected, {std::max(tolerance.forward, 2.0 * own.rel_f), std::max(tolerance.max, 2.0 * own.rel_max)}};
  }
  static ::testing::AssertionResult agrees(const Tensor& y, const Sequence& s) {
    return close(y, s.expected, s.limit.rel_f, s.limit.rel_max);
  }
};

TEST_P(States, SplitAnywhere) {
  if (!limits().state.empty()) GTEST_SKIP() << limits().state;
  Layer layer(std::get<0>(GetParam()), target());
  const std::int32_t T = 200;
  const Sequence s = sequence(layer, T, 1);
  for (const std::int32_t cut : {1, 17, 64, 128, 199}) {
    const auto state = layer.initial_state(1);
    const Tensor y = Tensor::empty(s.x.shape(), s.x.dtype());
    y.rows(0, cut).copy_from(layer.forward(copy(s.x.rows(0, cut)), Documents::single(cut), state.get()));
    const auto branch = state->clone();
    const auto rest = [&](MixerState& from) {
      return layer.forward(copy(s.x.rows(cut, T)), Documents::single(T - cut, cut), &from);
    };
    const Tensor second = rest(*state);
    y.rows(cut, T).copy_from(second);
    EXPECT_TRUE(agrees(y, s)) << "split at " << cut;
    EXPECT_TRUE(bitwise_equal(rest(*branch), second)) << "a cloned state goes its own way";
  }
}

// Three sequences of different lengths go through prefill and then token by token.
TEST_P(States, DecodeEqualsPrefill) {
  if (!limits().decode.empty()) GTEST_SKIP() << limits().decode;
  Layer layer(std::get<0>(GetParam()), target());
  const std::vector<std::int32_t> prefix = {1, 70, 33};
  const std::int32_t steps = 90;
  const auto N = static_cast<std::int64_t>(prefix.size());
  std::vector<Sequence> sequences;
  std::vector<Tensor> y;
  for (std::size_t n = 0; n < prefix.size(); ++n) {
    sequences.push_back(sequence(layer, prefix[n] + steps, 20 + n));
    y.push_back(Tensor::empty(sequences[n].x.shape(), target().dtype));
  }
  // The rows [begin, end) of each sequence, from and to a packed row.
  const auto run = [&](const DocumentsPtr& documents, MixerState& state) {
    const Tensor x = Tensor::empty({documents->tokens(), layer.width()}, target().dtype);
    const auto part = [&](const Tensor& of, std::int64_t n) {
      return of.rows(documents->pos0(n), documents->pos0(n) + documents->length(n));
    };
    const auto row = [&](const Tensor& of, std::int64_t n) { return of.rows(documents->begin(n), documents->end(n)); };
    for (std::int64_t n = 0; n < N; ++n) row(x, n).copy_from(part(sequences[static_cast<std::size_t>(n)].x, n));
    const Tensor out = layer.forward(x, documents, &state);
    for (std::int64_t n = 0; n < N; ++n) part(y[static_cast<std::size_t>(n)], n).copy_from(row(out, n));
  };
  const auto state = layer.initial_state(N);
  run(Documents::from_lengths(prefix), *state);
  std::vector<std::int32_t> positions = prefix;
  for (std::int32_t step = 0; step < steps; ++step) {
    run(Documents::single_tokens(positions), *state);
    for (std::int32_t& position : positions) ++position;
  }
  for (std::size_t n = 0; n < prefix.size(); ++n) {
    EXPECT_TRUE(agrees(y[n], sequences[n])) << "sequence " << n;
  }
}

std::string case_name(const ::testing::TestParamInfo<Case>& info) {
  return std::get<0>(info.param).name + "_" + target_name(std::get<1>(info.param));
}
const auto kSubjects = ::testing::ValuesIn(conformance_subjects());
constexpr Target kCpu{DeviceKind::cpu, DType::f64};
constexpr Target kGpuSingle{DeviceKind::cuda, DType::f32};
constexpr Target kGpuHalf{DeviceKind::cuda, DType::bf16};

INSTANTIATE_TEST_SUITE_P(Mixers, States, ::testing::Combine(kSubjects, ::testing::Values(kCpu)), case_name);
INSTANTIATE_TEST_SUITE_P(MixersGpu, States, ::testing::Combine(kSubjects, ::testing::Values(kGpuSingle, kGpuHalf)),
                         case_name);

}  // namespace
}  // namespace weft::testing
