// The contract of a sequence mixer, as tests that run on every registered mixer.

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <omp.h>

#include "tests/conformance/subject.h"
#include "tests/support/compare.h"

namespace weft::testing {
namespace {

class Conformance : public ::testing::TestWithParam<Subject> {
 protected:
  const MixerType& type() const {
    const Recipe& recipe = GetParam().recipe;
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

double dot(const Tensor& a, const Tensor& b) {
  double sum = 0.0;
  for (std::int64_t i = 0; i < a.numel(); ++i) sum += a.data<double>()[i] * b.data<double>()[i];
  return sum;
}

TEST(ConformanceSuite, EveryMixerHasATinyRecipe) {
  ASSERT_FALSE(mixer_types().empty());
  for (const MixerType* type : mixer_types()) {
    EXPECT_TRUE(std::filesystem::exists("modules/mixers/" + type->name + "/tiny.toml")) << type->name;
    EXPECT_TRUE(std::filesystem::exists("modules/mixers/" + type->name + "/README.md")) << type->name;
    EXPECT_FALSE(type->summary.empty()) << type->name;
  }
}

// fp64: d<w, y> along random directions, for x and each parameter by itself.
TEST_P(Conformance, GradientsMatchFiniteDifferences) {
  Layer layer(GetParam(), DType::f64);
  const DocumentsPtr docs = documents({1, 19, 2, 33, 5});
  const Tensor x = input(layer, docs->tokens(), 1);
  const Tensor w = input(layer, docs->tokens(), 2);
  const Layer::Gradients analytic = layer.backward(x, docs, w);

  const auto check = [&](const std::string& what, const Tensor& value, const Tensor& gradient) {
    for (std::uint64_t direction = 0; direction < 2; ++direction) {
      const Tensor u = normal(value.shape(), 50 + direction);
      const double h = 1e-6;
      const Tensor original = copy(value);
      const auto loss_at = [&](double step) {
        for (std::int64_t i = 0; i < value.numel(); ++i) {
          value.data<double>()[i] = original.data<double>()[i] + step * u.data<double>()[i];
        }
        return dot(w, layer.forward(x, docs));
      };
      const double numeric = (loss_at(h) - loss_at(-h)) / (2.0 * h);
      value.copy_from(original);
      const double exact = dot(gradient, u);
      const double scale = std::sqrt(dot(gradient, gradient));  // |<g, u>| of a random u is about |g|
      EXPECT_NEAR(numeric, exact, 1e-6 * std::max(scale, 1e-3)) << what;
    }
  };
  check("x", x, analytic.dx);
  std::size_t i = 0;
  for (Parameter* p : layer.parameters()) {
    EXPECT_GT(dot(analytic.parameters[i], analytic.parameters[i]), 0.0) << p->name << " gets no gradient";
    check(p->name, p->value, analytic.parameters[i++]);
  }
}

// Awkward lengths, alone and packed together. The families' own tests ask for the same bits, in fp32; here the
// projections, whose rounding in the BLAS depends on the number of rows, allow a tolerance. It is that of fp64, so that
// what a long chain of updates makes of rounding errors stays far below anything that a wrong boundary does.
TEST_P(Conformance, PackingChangesNothing) {
  if (!type().limits.documents.empty()) GTEST_SKIP() << type().limits.documents;
  Layer layer(GetParam(), DType::f64);
  const std::vector<std::int32_t> lengths = {1, 0, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 1000};
  const DocumentsPtr packed = documents(lengths);
  const Tensor x = input(layer, packed->tokens(), 1);
  const Tensor dy = input(layer, packed->tokens(), 2);
  const Layer::Gradients together = layer.backward(x, packed, dy);
  for (std::int64_t n = 0; n < packed->count(); ++n) {
    const std::int64_t begin = packed->begin(n), end = packed->end(n);
    if (begin == end) continue;
    const Layer::Gradients alone =
        layer.backward(copy(x.rows(begin, end)), Documents::single(end - begin), copy(dy.rows(begin, end)));
    EXPECT_TRUE(close(alone.y, together.y.rows(begin, end), kFp64Chunked.forward, kFp64Chunked.max))
        << "length " << end - begin;
    EXPECT_TRUE(close(alone.dx, together.dx.rows(begin, end), kFp64Chunked.backward, kFp64Chunked.max))
        << "length " << end - begin;
  }
}

// Another number of threads changes how the BLAS cuts the projections, and nothing else.
TEST_P(Conformance, ThreadsChangeNothing) {
  Layer layer(GetParam(), DType::f32);
  const DocumentsPtr docs = documents({130, 7, 300});
  const Tensor x = input(layer, docs->tokens(), 1);
  const Tensor dy = input(layer, docs->tokens(), 2);
  const Layer::Gradients first = layer.backward(x, docs, dy);
  const int threads = omp_get_max_threads();
  omp_set_num_threads(threads > 1 ? 1 : 2);
  const Layer::Gradients other = layer.backward(x, docs, dy);
  omp_set_num_threads(threads);
  const Layer::Gradients again = layer.backward(x, docs, dy);
  EXPECT_TRUE(bitwise_equal(again.y, first.y));
  EXPECT_TRUE(bitwise_equal(again.dx, first.dx));
  EXPECT_TRUE(close(other.y, first.y, kFp32.forward, kFp32.max));
  EXPECT_TRUE(close(other.dx, first.dx, kFp32.backward, kFp32.max));
  for (std::size_t i = 0; i < first.parameters.size(); ++i) {
    EXPECT_TRUE(bitwise_equal(again.parameters[i], first.parameters[i])) << layer.parameters()[i]->name;
  }
}

TEST_P(Conformance, PlansWhatItUses) {
  Layer layer(GetParam(), DType::f32);
  const std::int32_t T = 96;
  const auto state = layer.mixer().initial_state(1, cpu_place(DType::f32));
  layer.forward(input(layer, T, 1), Documents::single(T), state.get());
  EXPECT_EQ(layer.mixer().state_bytes(T), static_cast<double>(state->bytes()));

  const MixerCost one = layer.mixer().cost(1024, 256);
  const MixerCost two = layer.mixer().cost(2048, 256);
  EXPECT_GT(one.forward_flops, 0.0);
  EXPECT_GE(one.backward_flops, 1.5 * one.forward_flops);
  EXPECT_GT(one.forward_bytes, 0.0);
  EXPECT_GT(one.saved_bytes, 0.0);
  EXPECT_NEAR(two.forward_flops, 2.0 * one.forward_flops, 1e-9 * two.forward_flops);
}

INSTANTIATE_TEST_SUITE_P(Mixers, Conformance, ::testing::ValuesIn(conformance_subjects()), subject_name);

}  // namespace
}  // namespace weft::testing
