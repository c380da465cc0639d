#include "modules/mixers/deltanet/deltanet.h"

#include <gtest/gtest.h>

#include "modules/families/delta_rule/delta_rule_layer_test_cases.h"

namespace weft {
namespace {

using namespace testing;

TEST(DeltaNet, IsTheLayerOfItsReadme) {
  const auto none = [](std::int64_t, std::int64_t, std::int64_t) { return 0.0; };
  DeltaLayerUnderTest(deltanet_mixer(), {}).expect_output({.log_decay = none});
  DeltaLayerUnderTest(deltanet_mixer(),
                      {{"output_gate", true}, {"negative_eigenvalues", true}, {"conv_width", std::int64_t{0}}})
      .expect_output({.largest_beta = 2.0, .log_decay = none, .gate = [](double a) { return a * logistic(a); }});
}

TEST(DeltaNet, PlansTheMemoryItKeeps) {
  DeltaLayerUnderTest(deltanet_mixer(), {}).expect_saved_bytes();
  DeltaLayerUnderTest(deltanet_mixer(), {{"output_gate", true}}).expect_saved_bytes();
}

}  // namespace
}  // namespace weft
