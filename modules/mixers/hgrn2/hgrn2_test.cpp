#include "modules/mixers/hgrn2/hgrn2.h"

#include <cmath>
#include <gtest/gtest.h>

#include "modules/families/gated_linear/gated_linear_layer_test_cases.h"

namespace weft {
namespace {

using namespace testing;

TEST(Hgrn2Bounds, GrowFromZeroWithDepth) {
  EXPECT_EQ(hgrn2_lower_bound(0, 12), 0.0);
  EXPECT_EQ(hgrn2_lower_bound(6, 12), 0.5);
  EXPECT_EQ(hgrn2_lower_bound(11, 12), 11.0 / 12.0);
}

TEST(Hgrn2, IsTheLayerOfItsReadme) {
  for (const double given : {-1.0, 0.0, 0.6}) {
    LayerUnderTest layer(hgrn2_mixer(), {{"value_dim", std::int64_t{6}}, {"lower_bound", given}});
    const double gamma = given < 0.0 ? 1.0 / 3.0 : given;  // the second of three layers
    const auto forget = [gamma](double z) { return gamma + (1.0 - gamma) / (1.0 + std::exp(-z)); };
    const Tensor z = layer.product(layer.x, "wk");
    layer.expect_output({.d_v = 6,
                         .scale = 1.0,
                         .joint_norm = true,
                         .feature = [](double a) { return a / (1.0 + std::exp(-a)); },
                         .key = [&](double a) { return 1.0 - forget(a); },
                         .log_decay =
                             [&](std::int64_t t, std::int64_t h, std::int64_t x) {
                               return std::log(forget(z.data<double>()[t * z.dim(1) + h * layer.d_k + x]));
                             }});
  }
}

TEST(Hgrn2, PlansTheMemoryItKeeps) {
  LayerUnderTest(hgrn2_mixer(), {{"value_dim", std::int64_t{6}}}).expect_saved_bytes();
}

TEST(Hgrn2, RefusesBoundsWithoutMeaning) {
  EXPECT_EQ(creation_error<LayerUnderTest>(hgrn2_mixer(), {{"lower_bound", 1.0}}),
            "[mixer.test]: lower_bound = 1 must be at least 0 and below 1, or -1 for layer / layers");
  EXPECT_EQ(creation_error<LayerUnderTest>(hgrn2_mixer(), {{"lower_bound", -0.5}}),
            "[mixer.test]: lower_bound = -0.5 must be at least 0 and below 1, or -1 for layer / layers");
}

}  // namespace
}  // namespace weft
