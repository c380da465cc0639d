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
  LayerUnderTest layer(mala_mixer(), {{"value_dim", std::int64_t{5}}});
  const Tensor q = layer.product(layer.x, "wq"), k = layer.product(layer.x, "wk"), v = layer.product(layer.x, "wv");
  layer.expect_mixed(layer.product(weighted_values(layer, q, k, v, elu_plus_one, magnitude_aware_weights), "wo"));
}

// Weights that sum to 1 give back values that are all the same. The layer's input is 1 in a channel that alone makes
// values, and the output's projection is the identity on them.
TEST(Mala, WeightsSumToOne) {
  LayerUnderTest layer(mala_mixer(), {{"value_dim", std::int64_t{5}}});
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

TEST(Mala, PlansTheMemoryItKeeps) {
  LayerUnderTest(mala_mixer(), {{"value_dim", std::int64_t{6}}}).expect_saved_bytes();
}

}  // namespace
}  // namespace weft
