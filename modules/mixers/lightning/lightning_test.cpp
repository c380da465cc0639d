#include "modules/mixers/lightning/lightning.h"

#include <cmath>
#include <gtest/gtest.h>

#include "modules/families/gated_linear/gated_linear_layer_test_cases.h"
#include "modules/mixers/lightning/slopes.h"

namespace weft {
namespace {

using namespace testing;

TEST(LightningSlopes, GeometricByValue) {
  for (const std::int64_t H : {8, 12, 64}) {
    const std::vector<double> first = lightning_log_decays("geometric", H, 0, 12);
    const std::vector<double> last = lightning_log_decays("geometric", H, 11, 12);
    ASSERT_EQ(first.size(), static_cast<std::size_t>(H));
    for (std::int64_t h = 0; h < H; ++h) {
      const double slope = std::pow(2.0, -8.0 * static_cast<double>(h + 1) / static_cast<double>(H));
      EXPECT_NEAR(first[static_cast<std::size_t>(h)], -slope * (1.0 + 1e-5), 1e-15);
      // The last layer hardly decays: 1 - 11/11.00001 + 1e-5.
      EXPECT_NEAR(last[static_cast<std::size_t>(h)], -slope * 1.0909090082645e-5, 1e-15);
    }
  }
  const std::vector<double> eight = lightning_log_decays("geometric", 8, 0, 12);
  EXPECT_NEAR(eight[0], -0.5 * (1.0 + 1e-5), 1e-15);
  EXPECT_NEAR(eight[7], -0.00390625 * (1.0 + 1e-5), 1e-15);
  const std::vector<double> twelve = lightning_log_decays("geometric", 12, 0, 12);
  EXPECT_NEAR(twelve[0], -0.62996, 1e-5);
  EXPECT_NEAR(twelve[1], -0.39685, 1e-5);
  EXPECT_NEAR(twelve[2], -0.25, 1e-5);
}

TEST(LightningSlopes, AlibiEqualsGeometricForPowersOfTwoOnly) {
  for (const std::int64_t H : {1, 8, 16, 32, 64}) {
    EXPECT_EQ(lightning_log_decays("alibi", H, 3, 12), lightning_log_decays("geometric", H, 3, 12)) << H;
  }
  const std::vector<double> twelve = lightning_log_decays("alibi", 12, 0, 12);
  const double expected[] = {0.5,       0.25,       0.125,      0.0625,     0.03125,    0.015625,
                             0.0078125, 0.00390625, 0.70710678, 0.35355339, 0.17677670, 0.08838835};
  for (std::size_t h = 0; h < 12; ++h) EXPECT_NEAR(twelve[h], -expected[h] * (1.0 + 1e-5), 1e-8) << h;
}

TEST(LightningSlopes, LinearByValue) {
  const std::vector<double> first = lightning_log_decays("linear", 8, 0, 12);
  const std::vector<double> last = lightning_log_decays("linear", 12, 11, 12);
  EXPECT_EQ(first[0], 0.0);
  EXPECT_NEAR(first[7], -7.0, 1e-15);
  EXPECT_NEAR(last[11], -(88.0 / 12.0) * (1.0 / 12.0), 1e-15);
}

TEST(Lightning, ASingleLayerModelDecays) {
  EXPECT_NEAR(lightning_log_decays("geometric", 8, 0, 1)[0], -0.5 * (1.0 + 1e-5), 1e-15);
}

TEST(Lightning, IsTheLayerOfItsReadme) {
  for (const bool options : {false, true}) {
    LayerUnderTest layer(lightning_mixer(),
                         options ? std::vector<std::pair<std::string, OptionValue>>{{"value_dim", std::int64_t{6}},
                                                                                    {"slopes", std::string("linear")},
                                                                                    {"norm", std::string("per_head")},
                                                                                    {"gate_rank", std::int64_t{3}}}
                                 : std::vector<std::pair<std::string, OptionValue>>{});
    const std::int64_t d_v = options ? 6 : layer.d_k;
    const std::vector<double> decays =
        lightning_log_decays(options ? "linear" : "geometric", layer.heads, layer.layer, layer.layers);
    const auto silu = [](double a) { return a / (1.0 + std::exp(-a)); };
    layer.expect_output(
        {.d_v = d_v,
         .scale = 1.0,
         .joint_norm = !options,
         .feature = silu,
         .value = silu,
         .log_decay = [&](std::int64_t, std::int64_t h, std::int64_t) { return decays[static_cast<std::size_t>(h)]; },
         .gate = [](double a) { return 1.0 / (1.0 + std::exp(-a)); }});
  }
}

TEST(Lightning, PlansTheMemoryItKeeps) {
  LayerUnderTest(lightning_mixer(), {}).expect_saved_bytes();
  LayerUnderTest(lightning_mixer(), {{"gate_rank", std::int64_t{3}}, {"norm", std::string("per_head")}})
      .expect_saved_bytes();
}

TEST(Lightning, RefusesARankThatIsNotLow) {
  EXPECT_EQ(creation_error(lightning_mixer(), {{"gate_rank", std::int64_t{8}}}),
            "[mixer.test]: gate_rank = 8 is no low rank for a gate from 10 to 8 channels; use a smaller rank, or 0 for "
            "a full gate");
}

}  // namespace
}  // namespace weft
