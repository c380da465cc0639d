#include "modules/mixers/hedgehog/hedgehog.h"

#include <cmath>
#include <gtest/gtest.h>

#include "modules/families/gated_linear/linear_attention_test_cases.h"

namespace weft {
namespace {

using namespace testing;

// [softmax(x), softmax(-x)]
std::vector<double> softmaxes(const std::vector<double>& x) {
  std::vector<double> y;
  for (const double sign : {1.0, -1.0}) {
    double sum = 0.0;
    for (const double a : x) sum += std::exp(sign * a);
    for (const double a : x) y.push_back(std::exp(sign * a) / sum);
  }
  return y;
}

// Rows of x [T, H D], turned by their positions and then mapped by 1 + M of their head.
Tensor mapped(LayerUnderTest& layer, const Tensor& x, const std::string& map, double base) {
  const std::int64_t D = x.dim(1) / layer.heads;
  const Tensor& m = layer.store.find(map)->value;
  const Tensor y = Tensor::zeros(x.shape(), DType::f64);
  for (std::int64_t row = 0; row < x.numel() / D; ++row) {
    const auto position =
        static_cast<double>(layer.documents->positions()[static_cast<std::size_t>(row / layer.heads)]);
    std::vector<double> turned(x.data<double>() + row * D, x.data<double>() + (row + 1) * D);
    for (std::int64_t i = 0; base > 0.0 && i < D / 2; ++i) {
      const double angle = position * std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(D));
      double &a = turned[static_cast<std::size_t>(i)], &b = turned[static_cast<std::size_t>(i + D / 2)];
      const double before = a;
      a = before * std::cos(angle) - b * std::sin(angle);
      b = before * std::sin(angle) + b * std::cos(angle);
    }
    const double* weights = m.data<double>() + row % layer.heads * D * D;
    for (std::int64_t i = 0; i < D; ++i) {
      double& to = y.data<double>()[row * D + i];
      to = turned[static_cast<std::size_t>(i)];
      for (std::int64_t c = 0; c < D; ++c) to += weights[i * D + c] * turned[static_cast<std::size_t>(c)];
    }
  }
  return y;
}

TEST(Hedgehog, IsTheLayerOfItsReadme) {
  for (const double base : {0.0, 50.0}) {
    OptionList options = {{"value_dim", std::int64_t{5}}, {"rope", base > 0.0}};
    if (base > 0.0) options.emplace_back("rope_base", base);
    LayerUnderTest layer(hedgehog_mixer(), options);
    const Tensor q = mapped(layer, layer.product(layer.x, "wq"), "map_q", base);
    const Tensor k = mapped(layer, layer.product(layer.x, "wk"), "map_k", base);
    const Tensor o = weighted_values(layer, q, k, layer.product(layer.x, "wv"), softmaxes, shares);
    layer.expect_mixed(layer.product(o, "wo"));
  }
}

// What is trained is added to the identity, so nothing is added at first.
TEST(Hedgehog, StartsFromTheIdentity) {
  ParameterStore store;
  const auto mixer =
      hedgehog_mixer().create(ParameterScope(store), {.width = 8, .layers = 1, .layer = 0, .max_tokens = 8},
                              Options(hedgehog_mixer().options), "[mixer.test]");
  store.initialise(1, DType::f64);
  for (const char* name : {"map_q", "map_k"}) {
    const Parameter* map = store.find(name);
    EXPECT_EQ(map->shape, (Shape{8, 64, 64}));
    for (const double m : map->value.span<double>()) ASSERT_EQ(m, 0.0);
  }
}

TEST(Hedgehog, PlansTheMemoryItKeeps) {
  LayerUnderTest(hedgehog_mixer(), {{"value_dim", std::int64_t{6}}}).expect_saved_bytes();
  LayerUnderTest(hedgehog_mixer(), {{"rope", false}}).expect_saved_bytes();
}

TEST(Hedgehog, RefusesToTurnAnOddWidth) {
  EXPECT_EQ(creation_error<LayerUnderTest>(hedgehog_mixer(), {{"head_dim", std::int64_t{7}}}),
            "[mixer.test]: head_dim = 7 is odd; rope = true turns channels in pairs and needs an even number");
}

}  // namespace
}  // namespace weft
