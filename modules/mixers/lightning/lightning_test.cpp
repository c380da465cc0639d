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
        lightning_log_decays(options ? "linear" : "geometric", layer.heads, layer.site.layer, layer.site.layers);
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

// The layer of TransNormerLLM: two channels for each, turned by trained frequencies; no weight in the norm, no
// activation of values and gate.
TEST(Lightning, IsTheLayerOfTransNormer) {
  LayerUnderTest layer(lightning_mixer(), {{"value_dim", std::int64_t{6}},
                                           {"slopes", std::string("linear")},
                                           {"norm", std::string("simple")},
                                           {"gate", std::string("linear")},
                                           {"value_activation", std::string("none")},
                                           {"lrpe", std::string("all")}});
  EXPECT_EQ(layer.store.find("norm_w"), nullptr);
  const std::vector<double> decays = lightning_log_decays("linear", layer.heads, layer.site.layer, layer.site.layers);
  const Tensor& theta = layer.store.find("theta")->value;
  ASSERT_EQ(theta.numel(), layer.heads * layer.d_k);
  const Tensor q = layer.product(layer.x, "wq"), k = layer.product(layer.x, "wk"), v = layer.product(layer.x, "wv");
  const auto silu = [](double a) { return a / (1.0 + std::exp(-a)); };
  const Tensor o = Tensor::zeros(v.shape(), DType::f64);
  const std::int64_t channels = v.dim(1), keys = q.dim(1);
  for (std::int64_t t = 0; t < v.dim(0); ++t) {
    for (std::int64_t s = t - layer.documents->positions()[static_cast<std::size_t>(t)]; s <= t; ++s) {
      const auto distance = static_cast<double>(t - s);
      for (std::int64_t h = 0; h < layer.heads; ++h) {
        double score = 0.0;
        for (std::int64_t i = h * layer.d_k; i < (h + 1) * layer.d_k; ++i) {
          const double frequency =
              std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(keys)) + theta.data<double>()[i];
          score += silu(q.data<double>()[t * keys + i]) * silu(k.data<double>()[s * keys + i]) *
                   std::cos(distance * frequency);
        }
        score *= std::exp(distance * decays[static_cast<std::size_t>(h)]);
        for (std::int64_t y = h * 6; y < (h + 1) * 6; ++y) {
          o.data<double>()[t * channels + y] += score * v.data<double>()[s * channels + y];
        }
      }
    }
  }
  const Tensor gate = layer.product(layer.x, "wg");
  for (std::int64_t t = 0; t < o.dim(0); ++t) {
    double* row = o.data<double>() + t * channels;
    double squares = 0.0;
    for (std::int64_t y = 0; y < channels; ++y) squares += row[y] * row[y];
    const double r = 1.0 / std::sqrt(squares / static_cast<double>(channels) + 1e-6);
    for (std::int64_t y = 0; y < channels; ++y) row[y] *= r * gate.data<double>()[t * channels + y];
  }
  layer.expect_mixed(layer.product(o, "wo"));
}

TEST(Lightning, OffersEveryGate) {
  const std::pair<const char*, double (*)(double)> gates[] = {
      {"sigmoid", [](double a) { return 1.0 / (1.0 + std::exp(-a)); }},
      {"silu", [](double a) { return a / (1.0 + std::exp(-a)); }},
      {"linear", [](double a) { return a; }},
      {"none", nullptr}};
  const auto silu = gates[1].second;
  for (const auto& [name, gate] : gates) {
    LayerUnderTest layer(lightning_mixer(), {{"gate", std::string(name)}});
    const std::vector<double> decays =
        lightning_log_decays("geometric", layer.heads, layer.site.layer, layer.site.layers);
    LayerFormula formula{
        .d_v = layer.d_k,
        .scale = 1.0,
        .joint_norm = true,
        .feature = silu,
        .value = silu,
        .log_decay = [&](std::int64_t, std::int64_t h, std::int64_t) { return decays[static_cast<std::size_t>(h)]; }};
    if (gate != nullptr) formula.gate = gate;
    layer.expect_output(formula);
  }
}

// The layer under test is the second of three.
TEST(Lightning, TurnsTheFirstLayerAlone) {
  LayerUnderTest second(lightning_mixer(), {{"lrpe", std::string("first_layer")}});
  EXPECT_EQ(second.store.find("theta"), nullptr);
  ParameterStore store;
  Options options(lightning_mixer().options);
  options.set("lrpe", std::string("first_layer"));
  const auto first = lightning_mixer().create(
      ParameterScope(store), {.width = 8, .layers = 3, .layer = 0, .max_tokens = 8}, options, "[mixer.test]");
  EXPECT_NE(store.find("theta"), nullptr);
  EXPECT_EQ(first->state_bytes(1), 4.0 * 8 * 128 * 64);
}

TEST(Lightning, PlansTheMemoryItKeeps) {
  LayerUnderTest(lightning_mixer(), {{"lrpe", std::string("all")}, {"norm", std::string("simple")}})
      .expect_saved_bytes();
  LayerUnderTest(lightning_mixer(), {{"value_activation", std::string("none")}, {"gate", std::string("none")}})
      .expect_saved_bytes();
  LayerUnderTest(lightning_mixer(), {}).expect_saved_bytes();
  LayerUnderTest(lightning_mixer(), {{"gate_rank", std::int64_t{3}}, {"norm", std::string("per_head")}})
      .expect_saved_bytes();
}

TEST(Lightning, RefusesARankWithoutAGate) {
  EXPECT_EQ(creation_error<LayerUnderTest>(lightning_mixer(),
                                           {{"gate_rank", std::int64_t{2}}, {"gate", std::string("none")}}),
            "[mixer.test]: gate_rank = 2 with gate = \"none\"; leave the rank out, or choose a gate");
}

TEST(Lightning, RefusesARankThatIsNotLow) {
  EXPECT_EQ(creation_error<LayerUnderTest>(lightning_mixer(), {{"gate_rank", std::int64_t{8}}}),
            "[mixer.test]: gate_rank = 8 is no low rank for a gate from 10 to 8 channels; use a smaller rank, or 0 for "
            "a full gate");
}

}  // namespace
}  // namespace weft
