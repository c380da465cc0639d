#include "modules/mixers/kda/kda.h"

#include <gtest/gtest.h>

#include "modules/families/delta_rule/delta_rule_layer_test_cases.h"

namespace weft {
namespace {

using namespace testing;

// Gate input z = (x wf_a^T) wf_b^T + dt_bias of a token, value head and key channel.
std::function<double(std::int64_t, std::int64_t, std::int64_t)> gate_input(DeltaLayerUnderTest& layer) {
  return [&layer, f = layer.product(layer.product(layer.x, "wf_a"), "wf_b")](std::int64_t t, std::int64_t h,
                                                                             std::int64_t c) {
    return at(f, t, h * layer.d_k + c) + layer.parameter("dt_bias", h * layer.d_k + c);
  };
}

TEST(Kda, IsTheLayerOfItsReadme) {
  DeltaLayerUnderTest layer(kda_mixer(), {{"lower_bound", -3.0}, {"rank", std::int64_t{3}}});
  const auto z = gate_input(layer);
  layer.expect_output(
      {.log_decay = [&](std::int64_t t, std::int64_t h,
                        std::int64_t c) { return -3.0 * logistic(std::exp(layer.parameter("a_log", h)) * z(t, h, c)); },
       .gate = logistic});
}

TEST(Kda, WithASoftplusGateGroupedHeadsAndNegativeEigenvalues) {
  DeltaLayerUnderTest layer(kda_mixer(), {{"gate", std::string("softplus")},
                                          {"value_heads", std::int64_t{6}},
                                          {"negative_eigenvalues", true},
                                          {"output_gate", std::string("full")},
                                          {"conv_width", std::int64_t{2}}});
  const auto z = gate_input(layer);
  layer.expect_output(
      {.largest_beta = 2.0,
       .log_decay = [&](std::int64_t t, std::int64_t h,
                        std::int64_t c) { return -std::exp(layer.parameter("a_log", h)) * softplus_of(z(t, h, c)); },
       .gate = logistic});
}

TEST(Kda, WithoutABiasOfTheOutputGateAndAnotherEpsilon) {
  DeltaLayerUnderTest layer(kda_mixer(), {{"gate_bias", false}, {"norm_eps", 0.5}});
  EXPECT_FALSE(layer.has("bg"));
  const auto z = gate_input(layer);
  layer.expect_output(
      {.log_decay = [&](std::int64_t t, std::int64_t h,
                        std::int64_t c) { return -5.0 * logistic(std::exp(layer.parameter("a_log", h)) * z(t, h, c)); },
       .gate = logistic});
}

TEST(Kda, PlansTheMemoryItKeeps) {
  DeltaLayerUnderTest(kda_mixer(), {{"rank", std::int64_t{3}}}).expect_saved_bytes();
  DeltaLayerUnderTest(kda_mixer(), {{"value_heads", std::int64_t{4}},
                                    {"negative_eigenvalues", true},
                                    {"conv_width", std::int64_t{0}},
                                    {"output_gate", std::string("full")}})
      .expect_saved_bytes();
}

// Log decays begin between -0.5 and -0.005 a token.
TEST(Kda, StartsWithHorizonsOfTwoToTwoHundredTokens) {
  DeltaLayerUnderTest layer(kda_mixer(), {});
  layer.store.initialise(5, DType::f64);
  for (std::int64_t c = 0; c < layer.heads * layer.d_k; ++c) {
    EXPECT_EQ(layer.parameter("a_log", c / layer.d_k), 0.0);
    const double g = -5.0 * logistic(layer.parameter("dt_bias", c));
    EXPECT_LT(g, -0.0049);
    EXPECT_GT(g, -0.5);
  }
}

TEST(Kda, RefusesWhatCannotBe) {
  EXPECT_EQ(creation_error<DeltaLayerUnderTest>(kda_mixer(), {{"value_heads", std::int64_t{5}}}),
            "[mixer.test]: value_heads = 5 is no multiple of heads = 2; each key head serves equally many value heads, "
            "so use 6 or another multiple");
  EXPECT_EQ(creation_error<DeltaLayerUnderTest>(kda_mixer(), {{"conv_width", std::int64_t{1}}}),
            "[mixer.test]: conv_width = 1 mixes no tokens; use 0 for no convolutions, or 2 to 8");
  EXPECT_EQ(creation_error<DeltaLayerUnderTest>(kda_mixer(), {{"lower_bound", 0.0}}),
            "[mixer.test]: lower_bound = 0 would keep everything for ever; use a number from -5 to below 0");
  EXPECT_EQ(
      creation_error<DeltaLayerUnderTest>(kda_mixer(), {{"gate", std::string("softplus")}, {"lower_bound", -3.0}}),
      "[mixer.test]: lower_bound = -3 with gate = \"softplus\", which has none; leave it out, or use gate = "
      "\"bounded\"");
  EXPECT_EQ(
      creation_error<DeltaLayerUnderTest>(kda_mixer(), {{"output_gate", std::string("full")}, {"gate_bias", false}}),
      "[mixer.test]: gate_bias = false with output_gate = \"full\", which has no bias; leave it out");
}

}  // namespace
}  // namespace weft
