#include "modules/mixers/mala/mala.h"

#include <cmath>
#include <gtest/gtest.h>

#include "modules/families/gated_linear/linear_attention_test_cases.h"

namespace weft {
namespace {

using namespace testing;

std::vector<double> elu_plus_one(const std::vector<double>& x) {
  std::vector<double> y;
  for (const double a : x) y.push_back(a > 0.0 ? a + 1.0 : std::exp(a));
  return y;
}

// w_tj = (1 + 1/z) s_tj - z/n, which sum to 1; some are negative.
std::vector<double> magnitude_aware_weights(std::vector<double> scores) {
  double z = 0.0, sum = 0.0;
  for (const double s : scores) z += s;
  for (double& s : scores) sum += s = (1.0 + 1.0 / z) * s - z / static_cast<double>(scores.size());
  EXPECT_NEAR(sum, 1.0, 1e-11);
  return scores;
}

TEST(Mala, IsTheLayerOfItsReadme) {
  for (const std::string scores : {"sum", "mean"}) {
    LayerUnderTest layer(mala_mixer(), {{"value_dim", std::int64_t{5}}, {"scores", scores}});
    const Tensor q = layer.product(layer.x, "wq"), k = layer.product(layer.x, "wk"), v = layer.product(layer.x, "wv");
    const auto weights = [&](std::vector<double> s) {
      const double divisor = std::sqrt(static_cast<double>(layer.d_k)) * static_cast<double>(s.size());
      for (double& score : s) score /= scores == "mean" ? divisor : 1.0;
      return magnitude_aware_weights(s);
    };
    layer.expect_mixed(layer.product(weighted_values(layer, q, k, v, elu_plus_one, weights), "wo"));
  }
}

// Root mean square of the outputs of 256 tokens from `begin` on, for a document of noise and first weights.
double output_size(const std::string& scores, std::int64_t begin) {
  LayerUnderTest layer(mala_mixer(), {{"scores", scores}});
  layer.store.initialise(1, DType::f32);
  constexpr std::int32_t T = 8192;
  Tape tape(heap_allocator(), Tape::Mode::inference);
  const Var x = Tape::constant(cast(normal({T, layer.site.width}, 5), DType::f32));
  const Tensor y = layer.mixer->forward(tape, x, Documents::single(T), nullptr).value.rows(begin, begin + 256);
  double squares = 0.0;
  for (const float a : y.span<float>()) squares += static_cast<double>(a) * static_cast<double>(a);
  return std::sqrt(squares / static_cast<double>(y.numel()));
}

// The paper's sums grow with the document, its code's means do not.
TEST(Mala, OutputsOfMeansDoNotGrowWithTheDocument) {
  EXPECT_GT(output_size("sum", 7936), 3.0 * output_size("sum", 64));
  EXPECT_LT(output_size("mean", 7936), output_size("mean", 64));
}

// Weights that sum to 1 give back values that are all the same. The layer's input is 1 in a channel that alone makes
// values, and the output's projection is the identity on them.
void expect_unit_sums(const std::string& scores) {
  LayerUnderTest layer(mala_mixer(), {{"value_dim", std::int64_t{5}}, {"scores", scores}});
  const Tensor& wv = layer.store.find("wv")->value;
  const Tensor& wo = layer.store.find("wo")->value;  // [10, 10]
  wv.fill_zero();
  wo.fill_zero();
  for (std::int64_t i = 0; i < 10; ++i) {
    wv.data<double>()[i * layer.site.width] = static_cast<double>(i + 1);
    wo.data<double>()[i * 10 + i] = 1.0;
  }
  const Tensor expected = Tensor::zeros(layer.x.shape(), DType::f64);
  for (std::int64_t i = 0; i < expected.numel(); ++i) expected.data<double>()[i] = static_cast<double>(i % 10 + 1);
  for (std::int64_t t = 0; t < layer.x.dim(0); ++t) layer.x.data<double>()[t * layer.site.width] = 1.0;
  layer.expect_mixed(expected);
}

TEST(Mala, WeightsSumToOne) {
  for (const char* scores : {"sum", "mean"}) expect_unit_sums(scores);
}

TEST(Mala, PlansTheMemoryItKeeps) {
  LayerUnderTest(mala_mixer(), {{"value_dim", std::int64_t{6}}}).expect_saved_bytes();
}

}  // namespace
}  // namespace weft
