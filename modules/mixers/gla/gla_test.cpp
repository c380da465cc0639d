#include "modules/mixers/gla/gla.h"

#include <cmath>
#include <gtest/gtest.h>

#include "modules/families/gated_linear/gated_linear_layer_test_cases.h"

namespace weft {
namespace {

using namespace testing;

TEST(Gla, IsTheLayerOfItsReadme) {
  LayerUnderTest layer(gla_mixer(),
                       {{"value_dim", std::int64_t{6}}, {"decay_rank", std::int64_t{3}}, {"decay_temperature", 2.5}});
  const Tensor logits = layer.product(layer.product(layer.x, "wf_a"), "wf_b");
  const Tensor& bias = layer.store.find("bf")->value;
  layer.expect_output({.d_v = 6,
                       .scale = 1.0 / std::sqrt(static_cast<double>(layer.d_k)),
                       .joint_norm = false,
                       .log_decay =
                           [&](std::int64_t t, std::int64_t h, std::int64_t x) {
                             const std::int64_t i = h * layer.d_k + x;
                             const double z = logits.data<double>()[t * bias.numel() + i] + bias.data<double>()[i];
                             return -std::log1p(std::exp(-z)) / 2.5;
                           },
                       .gate = [](double a) { return a / (1.0 + std::exp(-a)); }});
}

TEST(Gla, PlansTheMemoryItKeeps) {
  LayerUnderTest(gla_mixer(), {{"value_dim", std::int64_t{6}}, {"decay_rank", std::int64_t{3}}}).expect_saved_bytes();
}

TEST(Gla, RefusesATemperatureOfZero) {
  EXPECT_EQ(creation_error<LayerUnderTest>(gla_mixer(), {{"decay_temperature", 0.0}}),
            "[mixer.test]: decay_temperature = 0 must be positive");
}

}  // namespace
}  // namespace weft
