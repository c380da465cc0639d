#include "modules/mixers/mamba2/mamba2.h"

#include <cmath>
#include <gtest/gtest.h>

#include "modules/families/gated_linear/gated_linear_layer_test_cases.h"

namespace weft {
namespace {

using namespace testing;

double silu(double a) {
  return a / (1.0 + std::exp(-a));
}

// silu(bias + sum_j taps_j p_{t-w+1+j}) of a projection p [T, C], document by document.
Tensor convolved(LayerUnderTest& layer, const std::string& name) {
  const Tensor p = layer.product(layer.x, "w" + name);
  const Tensor& taps = layer.store.find("conv_" + name)->value;
  const Tensor& bias = layer.store.find("conv_" + name + "_bias")->value;
  const Tensor y = Tensor::zeros(p.shape(), DType::f64);
  const std::int64_t C = p.dim(1), w = taps.dim(1);
  for (std::int64_t t = 0; t < p.dim(0); ++t) {
    const std::int64_t position = layer.documents->positions()[static_cast<std::size_t>(t)];
    for (std::int64_t c = 0; c < C; ++c) {
      double sum = bias.data<double>()[c];
      for (std::int64_t back = 0; back < w && back <= position; ++back) {
        sum += taps.data<double>()[c * w + w - 1 - back] * p.data<double>()[(t - back) * C + c];
      }
      y.data<double>()[t * C + c] = silu(sum);
    }
  }
  return y;
}

// The state space form of the paper: h_t = e^(Delta A) h_(t-1) + Delta B_t^T x_t, y_t = C_t h_t + D x_t.
TEST(Mamba2, IsTheLayerOfItsReadme) {
  for (const std::int64_t groups : {1, 2}) {
    LayerUnderTest layer(mamba2_mixer(), {{"heads", std::int64_t{4}},
                                          {"head_dim", std::int64_t{3}},
                                          {"state_dim", std::int64_t{5}},
                                          {"groups", groups},
                                          {"conv_width", std::int64_t{3}}});
    const std::int64_t H = 4, P = 3, N = 5, T = layer.x.dim(0);
    const Tensor C = convolved(layer, "q"), B = convolved(layer, "k"), x = convolved(layer, "v");
    const Tensor dt = layer.product(layer.x, "w_dt"), z = layer.product(layer.x, "wg");
    const auto parameter = [&](const char* name, std::int64_t i) {
      return layer.store.find(name)->value.data<double>()[i];
    };
    const Tensor y = Tensor::zeros(x.shape(), DType::f64);
    for (std::int64_t head = 0; head < H; ++head) {
      const std::int64_t group = head / (H / groups);
      std::vector<double> h;
      for (std::int64_t t = 0; t < T; ++t) {
        if (layer.documents->positions()[static_cast<std::size_t>(t)] == 0)
          h.assign(static_cast<std::size_t>(N * P), 0.0);
        const double step = std::log1p(std::exp(dt.data<double>()[t * H + head] + parameter("dt_bias", head)));
        const double decay = std::exp(-std::exp(parameter("a_log", head)) * step);
        for (std::int64_t p = 0; p < P; ++p) {
          const double input = x.data<double>()[(t * H + head) * P + p];
          double& out = y.data<double>()[(t * H + head) * P + p];
          out = parameter("skip", head) * input;
          for (std::int64_t n = 0; n < N; ++n) {
            double& state = h[static_cast<std::size_t>(n * P + p)];
            state = decay * state + step * B.data<double>()[(t * groups + group) * N + n] * input;
            out += C.data<double>()[(t * groups + group) * N + n] * state;
          }
        }
      }
    }
    const std::int64_t width = H * P / groups;
    for (std::int64_t row = 0; row < T * groups; ++row) {
      double squares = 0.0;
      for (std::int64_t c = row * width; c < (row + 1) * width; ++c) {
        y.data<double>()[c] *= silu(z.data<double>()[c]);
        squares += y.data<double>()[c] * y.data<double>()[c];
      }
      const double r = 1.0 / std::sqrt(squares / static_cast<double>(width) + 1e-6);
      for (std::int64_t c = row * width; c < (row + 1) * width; ++c) {
        y.data<double>()[c] *= r * parameter("norm_w", c % (H * P));
      }
    }
    layer.expect_mixed(layer.product(y, "wo"));
  }
}

TEST(Mamba2, PlansTheMemoryItKeeps) {
  for (const std::int64_t groups : {1, 2}) {
    LayerUnderTest(
        mamba2_mixer(),
        {{"heads", std::int64_t{4}}, {"head_dim", std::int64_t{6}}, {"state_dim", std::int64_t{5}}, {"groups", groups}})
        .expect_saved_bytes();
  }
}

TEST(Mamba2, RefusesGroupsThatDoNotDivideTheHeads) {
  EXPECT_EQ(
      creation_error<LayerUnderTest>(mamba2_mixer(), {{"heads", std::int64_t{6}}, {"groups", std::int64_t{4}}}),
      "[mixer.test]: heads = 6 is no multiple of groups = 4; each group of heads shares its queries and keys, so use "
      "heads = 8 or another multiple");
}

}  // namespace
}  // namespace weft
