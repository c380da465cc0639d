// What changes no bit of a mixer's results, on every device and in every type that it trains in; and how near a GPU
// comes to fp64.

#include <tuple>

#include "tests/conformance/subject.h"
#include "tests/support/compare.h"
#include "train/verify/precision.h"

namespace weft::testing {
namespace {

using Case = std::tuple<Subject, Target>;

class Invariance : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (target().device == DeviceKind::cuda) WEFT_NEEDS_GPU();
  }
  const Subject& subject() const { return std::get<0>(GetParam()); }
  const Target& target() const { return std::get<1>(GetParam()); }
  const MixerType& type() const {
    const Recipe& recipe = subject().recipe;
    return *recipe.mixer(recipe.model.pattern.front()).type;
  }
};

DocumentsPtr documents(std::vector<std::int32_t> lengths) {
  return Documents::from_lengths(lengths);
}

Tensor input(const Layer& layer, std::int64_t tokens, std::uint64_t seed) {
  return normal({tokens, layer.width()}, seed);
}

Tensor copy(const Tensor& t) {
  return cast(t, t.dtype());
}

TEST_P(Invariance, TheFutureChangesNothing) {
  Layer layer(subject(), target());
  const std::int64_t T = 150, t = 67;
  const Tensor x = input(layer, T, 1);
  const Tensor changed = copy(x);
  changed.rows(t, T).copy_from(normal({T - t, layer.width()}, 9, 3.0));
  const DocumentsPtr docs = Documents::single(T);
  EXPECT_TRUE(bitwise_equal(layer.forward(changed, docs).rows(0, t), layer.forward(x, docs).rows(0, t)));

  const Tensor dy = input(layer, T, 2);
  dy.rows(t, T).fill_zero();
  const Tensor dx = layer.backward(x, docs, dy).dx;
  EXPECT_TRUE(bitwise_equal(cast(dx.rows(t, T), DType::f32), Tensor::zeros({T - t, layer.width()}, DType::f32)));
}

TEST_P(Invariance, DocumentsAreIsolated) {
  if (!type().limits.documents.empty()) GTEST_SKIP() << type().limits.documents;
  Layer layer(subject(), target());
  const DocumentsPtr docs = documents({37, 65, 20});
  const Tensor x = input(layer, docs->tokens(), 1);
  const Tensor dy = input(layer, docs->tokens(), 2);
  const Tensor x2 = copy(x);
  const Tensor dy2 = copy(dy);
  x2.rows(37, 102).copy_from(normal({65, layer.width()}, 9, 3.0));
  dy2.rows(37, 102).copy_from(normal({65, layer.width()}, 10, 3.0));
  const Layer::Gradients a = layer.backward(x, docs, dy);
  const Layer::Gradients b = layer.backward(x2, docs, dy2);
  for (const auto& [begin, end] : {std::pair{0, 37}, std::pair{102, 122}}) {
    EXPECT_TRUE(bitwise_equal(a.y.rows(begin, end), b.y.rows(begin, end)));
    EXPECT_TRUE(bitwise_equal(a.dx.rows(begin, end), b.dx.rows(begin, end)));
  }
}

TEST_P(Invariance, AnEmptyRowIsLegal) {
  Layer layer(subject(), target());
  EXPECT_EQ(layer.forward(input(layer, 0, 1), documents({0, 0})).numel(), 0);
}

TEST_P(Invariance, RecomputationGivesTheSameBits) {
  Layer layer(subject(), target());
  const DocumentsPtr docs = documents({130, 7});
  const Tensor x = input(layer, docs->tokens(), 1);
  const Tensor dy = input(layer, docs->tokens(), 2);
  const Layer::Gradients kept = layer.backward(x, docs, dy);
  for (const Recompute recompute : {Recompute::selective, Recompute::block}) {
    SCOPED_TRACE(recompute == Recompute::block ? "block" : "selective");
    const Layer::Gradients recomputed = layer.backward(x, docs, dy, recompute);
    EXPECT_TRUE(bitwise_equal(recomputed.y, kept.y));
    EXPECT_TRUE(bitwise_equal(recomputed.dx, kept.dx));
    for (std::size_t i = 0; i < kept.parameters.size(); ++i) {
      EXPECT_TRUE(bitwise_equal(recomputed.parameters[i], kept.parameters[i])) << layer.parameters()[i]->name;
    }
  }
}

TEST_P(Invariance, RunsRepeat) {
  Layer layer(subject(), target());
  const DocumentsPtr docs = documents({130, 7, 300});
  const Tensor x = input(layer, docs->tokens(), 1);
  const Tensor dy = input(layer, docs->tokens(), 2);
  const Layer::Gradients first = layer.backward(x, docs, dy);
  const Layer::Gradients again = layer.backward(x, docs, dy);
  EXPECT_TRUE(bitwise_equal(again.y, first.y));
  EXPECT_TRUE(bitwise_equal(again.dx, first.dx));
  for (std::size_t i = 0; i < first.parameters.size(); ++i) {
    EXPECT_TRUE(bitwise_equal(again.parameters[i], first.parameters[i])) << layer.parameters()[i]->name;
  }
}

// Agreement of a layer with fp64, at the tolerances of recurrences for all: a layer is a chain of kernels, each of
// which has its own test at the tolerances of its kind.
class Precision : public Invariance {};

TEST_P(Precision, MatchesDouble) {
  Layer layer(subject(), target());
  const DocumentsPtr docs = documents({130, 1, 77});
  const PrecisionCase c{.declare = mixer_of(subject()),
                        .tolerance = target().dtype == DType::f32 ? kFp32 : kBf16Recurrence,
                        .inputs = {input(layer, docs->tokens(), 1)},
                        .row = {.documents = docs},
                        .seeds = {input(layer, docs->tokens(), 2)},
                        .compared = ComparedTokens::all(*docs),
                        .input_names = {"x"},
                        .output_names = {"output"}};
  for (const PrecisionResult& r : compare_with_double(c, layer.specimen())) {
    EXPECT_TRUE(r.ok()) << r.quantity << ": rel_F " << r.error.rel_f << " (limit " << r.limit.rel_f << "), rel_max "
                        << r.error.rel_max << " (limit " << r.limit.rel_max << ")";
  }
}

std::string case_name(const ::testing::TestParamInfo<Case>& info) {
  return std::get<0>(info.param).name + "_" + target_name(std::get<1>(info.param));
}
const auto kSubjects = ::testing::ValuesIn(conformance_subjects());
constexpr Target kCpu{DeviceKind::cpu, DType::f32};
constexpr Target kGpuSingle{DeviceKind::cuda, DType::f32};
constexpr Target kGpuHalf{DeviceKind::cuda, DType::bf16};

INSTANTIATE_TEST_SUITE_P(Mixers, Invariance, ::testing::Combine(kSubjects, ::testing::Values(kCpu)), case_name);
INSTANTIATE_TEST_SUITE_P(MixersGpu, Invariance, ::testing::Combine(kSubjects, ::testing::Values(kGpuSingle, kGpuHalf)),
                         case_name);
INSTANTIATE_TEST_SUITE_P(Mixers, Precision, ::testing::Combine(kSubjects, ::testing::Values(kCpu)), case_name);
INSTANTIATE_TEST_SUITE_P(MixersGpu, Precision, ::testing::Combine(kSubjects, ::testing::Values(kGpuSingle, kGpuHalf)),
                         case_name);

}  // namespace
}  // namespace weft::testing
