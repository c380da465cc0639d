#include "modules/mixers/gdn/gdn.h"

#include <gtest/gtest.h>

#include "modules/families/delta_rule/delta_rule_layer_test_cases.h"

namespace weft {
namespace {

using namespace testing;

TEST(Gdn, IsTheLayerOfItsReadme) {
  for (const bool negative : {false, true}) {
    DeltaLayerUnderTest layer(gdn_mixer(), {{"value_heads", std::int64_t{4}}, {"negative_eigenvalues", negative}});
    const Tensor f = layer.product(layer.x, "wa");
    layer.expect_output({.largest_beta = negative ? 2.0 : 1.0,
                         .log_decay =
                             [&](std::int64_t t, std::int64_t h, std::int64_t) {
                               const double z = at(f, t, h) + layer.parameter("dt_bias", h);
                               return -std::exp(layer.parameter("a_log", h)) * softplus_of(z);
                             },
                         .gate = [](double a) { return a * logistic(a); }});
  }
}

TEST(Gdn, PlansTheMemoryItKeeps) {
  DeltaLayerUnderTest(gdn_mixer(), {{"value_heads", std::int64_t{4}}}).expect_saved_bytes();
}

TEST(Gdn, RefusesValueHeadsThatKeyHeadsDoNotDivide) {
  EXPECT_EQ(creation_error<DeltaLayerUnderTest>(gdn_mixer(), {{"value_heads", std::int64_t{1}}}),
            "[mixer.test]: value_heads = 1 is no multiple of heads = 2; each key head serves equally many value heads, "
            "so use 2 or another multiple");
}

}  // namespace
}  // namespace weft
