// The layer of ttt_linear and ttt_mlp written down naively in fp64, to compare the mixers with.
#pragma once

#include <cmath>

#include "modules/families/gated_linear/gated_linear_layer_test_cases.h"
#include "modules/families/ttt/ttt_memory_reference.h"

namespace weft::testing {

struct TttLayerFormula {
  std::int64_t hidden, batch, conv;
  double eta;
  bool rope, gate;
};

// Queries or keys: filter over the tokens of the document, then turned by their place in the batch.
inline Tensor ttt_features(LayerUnderTest& layer, const TttLayerFormula& f, const char* weight, const char* filter) {
  const Tensor projected = layer.product(layer.x, weight);
  const std::int64_t T = layer.x.dim(0), C = projected.dim(1), d_h = layer.d_k;
  const Tensor y = Tensor::zeros({T, C}, DType::f64);
  for (std::int64_t t = 0; t < T; ++t) {
    const std::int64_t position = layer.documents->positions()[static_cast<std::size_t>(t)];
    for (std::int64_t c = 0; c < C; ++c) {
      double& value = y.data<double>()[t * C + c];
      if (f.conv == 0) value = projected.data<double>()[t * C + c];
      for (std::int64_t back = 0; back < std::min(f.conv, position + 1); ++back) {
        value += layer.store.find(filter)->value.data<double>()[c * f.conv + f.conv - 1 - back] *
                 projected.data<double>()[(t - back) * C + c];
      }
    }
    for (std::int64_t i = 0; f.rope && i < C; ++i) {
      if (i % d_h >= d_h / 2) continue;
      const double angle = static_cast<double>(position % f.batch) *
                           std::pow(10000.0, -2.0 * static_cast<double>(i % d_h) / static_cast<double>(d_h));
      double &a = y.data<double>()[t * C + i], &b = y.data<double>()[t * C + i + d_h / 2];
      const double turned = a * std::cos(angle) - b * std::sin(angle);
      b = a * std::sin(angle) + b * std::cos(angle);
      a = turned;
    }
  }
  return y;
}

inline void expect_ttt_layer(LayerUnderTest& layer, const TttLayerFormula& f) {
  const std::int64_t T = layer.x.dim(0), H = layer.heads, d_h = layer.d_k;
  const auto raw = [&](const char* name) -> const void* {
    const Parameter* p = layer.store.find(name);
    return p == nullptr ? nullptr : p->value.raw();
  };
  const Tensor q = ttt_features(layer, f, "wq", "conv_q"), k = ttt_features(layer, f, "wk", "conv_k");
  const Tensor v = layer.product(layer.x, "wv"), rate = layer.product(layer.x, "wr");
  for (std::int64_t i = 0; i < rate.numel(); ++i) {
    double& r = rate.data<double>()[i];
    r += layer.store.find("br")->value.data<double>()[i % H];
    r = f.eta / (1.0 + std::exp(-r)) / static_cast<double>(d_h);
  }
  const TttProblem problem{.dtype = DType::f64,
                           .T = T,
                           .N = layer.documents->count(),
                           .H = H,
                           .d = d_h,
                           .m = f.hidden,
                           .C = f.batch,
                           .q = q.raw(),
                           .k = k.raw(),
                           .v = v.raw(),
                           .rate = rate.raw(),
                           .offset = raw("offset"),
                           .gamma = raw("gamma"),
                           .beta = raw("beta"),
                           .w1 = raw("memory_w1"),
                           .b1 = raw("memory_b1"),
                           .w2 = raw(f.hidden > 0 ? "memory_w2" : "memory_w"),
                           .b2 = raw(f.hidden > 0 ? "memory_b2" : "memory_b"),
                           .state = nullptr,
                           .cu_seqlens = layer.documents->cu_seqlens().data(),
                           .phase = nullptr};
  const Tensor o = Tensor::zeros({T, H * d_h}, DType::f64);
  std::vector<double> final_state(static_cast<std::size_t>(problem.N * H * 2 * ttt_memory_size(d_h, f.hidden)));
  for (std::int64_t n = 0; n < problem.N; ++n) {
    for (std::int64_t h = 0; h < H; ++h) TttReference(problem, n, h).forward(o.data<double>(), final_state.data());
  }
  const Tensor gate = f.gate ? layer.product(layer.x, "wg") : Tensor{};
  for (std::int64_t t = 0; t < T; ++t) {
    double* row = o.data<double>() + t * H * d_h;
    double squares = 0.0;
    for (std::int64_t c = 0; c < H * d_h; ++c) squares += row[c] * row[c];
    const double r = 1.0 / std::sqrt(squares / static_cast<double>(H * d_h) + 1e-6);
    for (std::int64_t c = 0; c < H * d_h; ++c) {
      row[c] *= r * layer.store.find("norm_w")->value.data<double>()[c];
      if (!f.gate) continue;
      const double g = gate.data<double>()[t * H * d_h + c];
      row[c] *= 0.5 * g * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (g + 0.044715 * g * g * g)));
    }
  }
  layer.expect_mixed(layer.product(o, "wo"));
}

}  // namespace weft::testing
