// The layer of the README written down naively in fp64, to compare with; T tokens in documents.
#pragma once

#include <cmath>
#include <gtest/gtest.h>

#include "modules/families/fast_weights/fast_weights_reference.h"
#include "modules/mixers/swa_ttt/swa_ttt.h"
#include "tests/support/layer_case.h"

namespace weft::testing::swa_ttt {

inline constexpr MixerSite kSite{.width = 24, .layers = 3, .layer = 1, .max_tokens = 64};
inline constexpr std::int64_t kChunk = 4;

struct Layer : LayerCase {
  explicit Layer(const OptionList& changes, DType dtype = DType::f64)
      : LayerCase(swa_ttt_mixer(), small_and(changes), kSite, dtype) {
    perturb(0.4, 0.2);
  }

  static OptionList small_and(const OptionList& changes) {
    OptionList all{{"chunk", kChunk}, {"window", std::int64_t{6}}, {"memory_heads", std::int64_t{2}}};
    all.insert(all.end(), changes.begin(), changes.end());
    return all;
  }
};

inline double sigma(double a) {
  return 1.0 / (1.0 + std::exp(-a));
}

// x w^T + b
inline Tensor product(const Tensor& x, const Tensor& w, const Tensor& b) {
  const Tensor y = testing::product(x, w);
  for (std::int64_t i = 0; i < y.numel(); ++i) y.data<double>()[i] += b.data<double>()[i % b.numel()];
  return y;
}
template <class F>
Tensor map(const Tensor& x, F&& f) {
  const Tensor y = cast(x, DType::f64);
  for (std::int64_t i = 0; i < y.numel(); ++i) y.data<double>()[i] = f(y.data<double>()[i], i % y.dim(1));
  return y;
}
// Groups of `width` columns divided by sqrt(sum of squares / mean_over + eps), times w [width] if given.
inline Tensor normed(const Tensor& x, std::int64_t width, double mean_over, const Tensor& w = {}) {
  const Tensor y = cast(x, DType::f64);
  for (double* group = y.data<double>(); group < y.data<double>() + y.numel(); group += width) {
    double squares = 0.0;
    for (std::int64_t c = 0; c < width; ++c) squares += group[c] * group[c];
    for (std::int64_t c = 0; c < width; ++c) {
      group[c] *= (w.defined() ? w.data<double>()[c] : 1.0) / std::sqrt(squares / mean_over + 1e-6);
    }
  }
  return y;
}
inline Tensor rotated(const Tensor& x, const Documents& documents, std::int64_t D) {
  const Tensor y = cast(x, DType::f64);
  for (std::int64_t t = 0; t < x.dim(0); ++t) {
    for (std::int64_t c = 0; c < x.dim(1); ++c) {
      const std::int64_t i = c % D;
      if (i >= D / 2) continue;
      const double angle = documents.positions()[static_cast<std::size_t>(t)] *
                           std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(D));
      at(y, t, c) = at(x, t, c) * std::cos(angle) - at(x, t, c + D / 2) * std::sin(angle);
      at(y, t, c + D / 2) = at(x, t, c) * std::sin(angle) + at(x, t, c + D / 2) * std::cos(angle);
    }
  }
  return y;
}

struct Formula {
  std::int64_t H_Q, H_KV, D, H_m, d_m;
  std::int64_t window, sinks = 0;
  FastWeightConfig memory;
  bool value_norm, value_silu, shared = false;
  double eta_max = 0.0;
};

inline Tensor window_attention(const Formula& f, Layer& layer, const Documents& documents, const Tensor& q,
                               const Tensor& k, const Tensor& v) {
  const Tensor o = Tensor::zeros({q.dim(0), f.H_Q * f.D}, DType::f64);
  for (std::int64_t n = 0; n < documents.count(); ++n) {
    for (std::int64_t h = 0; h < f.H_Q; ++h) {
      const std::int64_t key = h / (f.H_Q / f.H_KV) * f.D;
      for (std::int64_t i = documents.begin(n); i < documents.end(n); ++i) {
        double total = layer.has("sink_logit") ? std::exp(layer.value("sink_logit").data<double>()[h]) : 0.0;
        for (std::int64_t j = documents.begin(n); j <= i; ++j) {
          if (i - j >= f.window && j - documents.begin(n) >= f.sinks) continue;
          double score = 0.0;
          for (std::int64_t c = 0; c < f.D; ++c) score += at(q, i, h * f.D + c) * at(k, j, key + c);
          const double weight = std::exp(score / std::sqrt(static_cast<double>(f.D)));
          total += weight;
          for (std::int64_t c = 0; c < f.D; ++c) at(o, i, h * f.D + c) += weight * at(v, j, key + c);
        }
        for (std::int64_t c = 0; c < f.D; ++c) at(o, i, h * f.D + c) /= total;
      }
    }
  }
  return o;
}

// A key head for every query head.
inline Tensor spread(const Formula& f, const Tensor& x) {
  const Tensor y = Tensor::zeros({x.dim(0), f.H_Q * f.D}, DType::f64);
  for (std::int64_t t = 0; t < x.dim(0); ++t) {
    for (std::int64_t c = 0; c < y.dim(1); ++c) {
      at(y, t, c) = at(x, t, c / f.D * f.H_KV / f.H_Q * f.D + c % f.D);
    }
  }
  return y;
}

inline Tensor expected_output(const Formula& f, Layer& layer, const Tensor& x, const Documents& documents) {
  const auto maybe_normed = [&](const Tensor& t, const char* w) {
    return layer.has(w) ? normed(t, f.D, static_cast<double>(f.D), layer.value(w)) : t;
  };
  const Tensor q = maybe_normed(layer.product(x, "wq"), "q_norm_w");
  const Tensor k = maybe_normed(layer.product(x, "wk"), "k_norm_w");
  const Tensor v = layer.product(x, "wv");
  const Tensor o = window_attention(f, layer, documents, rotated(q, documents, f.D), rotated(k, documents, f.D), v);

  const auto feature = [&](const Tensor& own, const char* s, const char* t) {
    const Tensor a = map(own, [&](double u, std::int64_t c) {
      const double z = layer.value(s).data<double>()[c] * u + layer.value(t).data<double>()[c];
      return z * sigma(z);
    });
    return normed(a, f.d_m, 1.0);
  };
  const Tensor q_m = feature(f.shared ? q : layer.product(x, "wq_m"), "s_q", "t_q");
  const Tensor k_m = feature(f.shared ? spread(f, k) : layer.product(x, "wk_m"), "s_k", "t_k");
  Tensor v_m = f.shared ? spread(f, v) : layer.product(x, "wv_m");
  if (f.value_silu) v_m = map(v_m, [](double u, std::int64_t) { return u * sigma(u); });
  if (f.value_norm) v_m = normed(v_m, f.d_m, static_cast<double>(f.d_m));
  const Tensor eta = map(product(x, layer.value("w_eta"), layer.value("b_eta")), [&](double u, std::int64_t) {
    return f.eta_max > 0.0 ? f.eta_max * sigma(u) : std::log1p(std::exp(u));
  });
  const auto fraction = [&](const char* w, const char* b) {
    if (!layer.has(w)) return Tensor{};
    return map(product(x, layer.value(w), layer.value(b)), [](double u, std::int64_t) { return sigma(u); });
  };
  const Tensor mu = fraction("w_mu", "b_mu"), lambda = fraction("w_lambda", "b_lambda");
  const Tensor answer = Tensor::zeros({x.dim(0), f.H_m * f.d_m}, DType::f64);
  FastWeightForward memory{{.dtype = DType::f64,
                            .config = f.memory,
                            .T = x.dim(0),
                            .N = documents.count(),
                            .H = f.H_m,
                            .d_m = f.d_m,
                            .d_h = layer.value("w0").dim(1),
                            .q = q_m.raw(),
                            .k = k_m.raw(),
                            .v = v_m.raw(),
                            .eta = eta.raw(),
                            .mu = mu.defined() ? mu.raw() : nullptr,
                            .lambda = lambda.defined() ? lambda.raw() : nullptr,
                            .w0 = layer.value("w0").raw(),
                            .w1 = layer.value("w1").raw(),
                            .w2 = layer.value("w2").raw(),
                            .cu_seqlens = documents.cu_seqlens().data()}};
  memory.out = answer.raw();
  fast_weight_reference::memory(memory, nullptr);
  const Tensor m = normed(answer, f.d_m, static_cast<double>(f.d_m), layer.value("norm_m"));

  if (!layer.has("w_s")) {
    const Tensor y = layer.product(o, "wo"), from_memory = layer.product(m, "wo_m");
    for (std::int64_t i = 0; i < y.numel(); ++i) {
      y.data<double>()[i] += layer.value("alpha").data<double>()[i % y.dim(1)] * from_memory.data<double>()[i];
    }
    return y;
  }
  const Tensor gate = layer.product(x, "w_s");
  for (std::int64_t t = 0; t < o.dim(0); ++t) {
    for (std::int64_t c = 0; c < o.dim(1); ++c) {
      const double g = at(gate, t, c / f.d_m);
      at(o, t, c) += g * sigma(g) * at(m, t, c);
    }
  }
  return layer.product(o, "wo");
}

}  // namespace weft::testing::swa_ttt
