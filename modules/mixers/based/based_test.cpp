#include "modules/mixers/based/based.h"

#include <cmath>
#include <gtest/gtest.h>

#include "modules/families/gated_linear/linear_attention_test_cases.h"

namespace weft {
namespace {

using namespace testing;

// The weights are those of a softmax whose exponential stops after its second order.
TEST(Based, IsTheLayerOfItsReadme) {
  LayerUnderTest layer(based_mixer(), {{"feature_dim", std::int64_t{3}}, {"value_dim", std::int64_t{5}}});
  const Tensor q = layer.product(layer.x, "wq"), k = layer.product(layer.x, "wk"), v = layer.product(layer.x, "wv");
  const auto identity = [](const std::vector<double>& x) { return x; };
  const auto truncated = [](std::vector<double> scores) {
    for (double& s : scores) {
      const double u = s / std::sqrt(3.0);
      s = 1.0 + u + u * u / 2.0;
    }
    return shares(scores);
  };
  layer.expect_mixed(layer.product(weighted_values(layer, q, k, v, identity, truncated), "wo"));
}

TEST(Based, PlansTheMemoryItKeeps) {
  LayerUnderTest(based_mixer(), {{"feature_dim", std::int64_t{16}}, {"value_dim", std::int64_t{6}}})
      .expect_saved_bytes();
}

TEST(Based, CarriesAllFeaturesAndTheirSums) {
  LayerUnderTest layer(based_mixer(), {{"feature_dim", std::int64_t{16}}, {"value_dim", std::int64_t{6}}});
  EXPECT_EQ(layer.mixer->state_bytes(1), 4.0 * 2 * 153 * (6 + 1));
  EXPECT_EQ(layer.mixer->state_bytes(100000), layer.mixer->state_bytes(1));
}

}  // namespace
}  // namespace weft
