#include "modules/mixers/retnet/retnet.h"

#include <cmath>
#include <gtest/gtest.h>

#include "modules/families/gated_linear/gated_linear_layer_test_cases.h"

namespace weft {
namespace {

using namespace testing;

TEST(RetNetDecays, ByValue) {
  const std::vector<double> g = retnet_log_decays(8);
  EXPECT_NEAR(std::exp(g[0]), 31.0 / 32.0, 1e-15);
  EXPECT_NEAR(std::exp(g[3]), 255.0 / 256.0, 1e-15);
  EXPECT_NEAR(std::exp(g[7]), 4095.0 / 4096.0, 1e-15);
  EXPECT_LT(retnet_log_decays(64)[63], 0.0);  // 1 - 2^-68 is 1 in fp64; its logarithm is not 0
}

TEST(RetNet, IsTheLayerOfItsReadme) {
  LayerUnderTest layer(retnet_mixer(), {{"value_dim", std::int64_t{6}}, {"rope_base", 50.0}});
  const std::vector<double> decays = retnet_log_decays(layer.heads);
  const auto half = layer.d_k / 2;
  layer.expect_output(
      {.d_v = 6,
       .scale = 1.0 / std::sqrt(static_cast<double>(layer.d_k)),
       .joint_norm = false,
       .rotation =
           [&](std::int64_t position, std::int64_t i) {
             return static_cast<double>(position) * std::pow(50.0, -static_cast<double>(i) / static_cast<double>(half));
           },
       .log_decay = [&](std::int64_t, std::int64_t h, std::int64_t) { return decays[static_cast<std::size_t>(h)]; },
       .gate = [](double a) { return a / (1.0 + std::exp(-a)); }});
}

TEST(RetNet, PlansTheMemoryItKeeps) {
  LayerUnderTest(retnet_mixer(), {{"value_dim", std::int64_t{6}}}).expect_saved_bytes();
}

TEST(RetNet, RefusesAnOddHeadWidth) {
  EXPECT_EQ(creation_error<LayerUnderTest>(retnet_mixer(), {{"head_dim", std::int64_t{7}}}),
            "[mixer.test]: head_dim = 7 is odd; the rotation turns pairs of channels");
}

}  // namespace
}  // namespace weft
