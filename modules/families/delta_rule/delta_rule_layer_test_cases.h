// The layer of the family written down naively in fp64, to compare mixers with; documents shorter than the convolution
// among others.
#pragma once

#include <cmath>
#include <functional>

#include "tests/support/layer_case.h"

namespace weft::testing {

inline double logistic(double a) {
  return 1.0 / (1.0 + std::exp(-a));
}
inline double softplus_of(double a) {
  return std::max(a, 0.0) + std::log1p(std::exp(-std::abs(a)));
}

// What distinguishes one mixer of the family from another.
struct DeltaLayerFormula {
  double largest_beta = 1.0;
  std::function<double(std::int64_t, std::int64_t, std::int64_t)> log_decay;  // token, value head, key channel
  std::function<double(double)> gate = nullptr;                               // of the output; null: none
};

// A layer of 2 key heads of 4 channels, values of 6, and width 10, unless the options say otherwise.
class DeltaLayerUnderTest : public LayerCase {
 public:
  DeltaLayerUnderTest(const MixerType& type, const OptionList& options)
      : LayerCase(type, with_heads(options), {.width = 10, .layers = 3, .layer = 1, .max_tokens = 64}) {
    const std::int64_t value_heads = options_with(type, options).integer("value_heads");
    if (value_heads > 0) heads = value_heads;
    norm_eps = options_with(type, options).real("norm_eps");
    randomise(0.5, 0.5);
  }

  // Element i of a parameter.
  double parameter(const std::string& name, std::int64_t i) { return value(name).data<double>()[i]; }

  void expect_output(const DeltaLayerFormula& f) {
    const Tensor q = features("wq", "conv_q"), k = features("wk", "conv_k");
    const Tensor v = features("wv", "conv_v"), strengths = product(x, "wb");
    normalise(q, d_k, [](double squares, std::int64_t) { return std::sqrt(squares + 1e-6); });
    normalise(k, d_k, [](double squares, std::int64_t) { return std::sqrt(squares + 1e-6); });
    const Tensor o = Tensor::zeros({x.dim(0), heads * d_v}, DType::f64);
    for (std::int64_t h = 0; h < heads; ++h) {
      const std::int64_t key = h / (heads / key_heads) * d_k;
      const Tensor S = Tensor::zeros({d_k, d_v}, DType::f64);
      for (std::int64_t t = 0; t < x.dim(0); ++t) {
        if (position(t) == 0) S.fill_zero();
        for (std::int64_t c = 0; c < d_k; ++c) {
          for (std::int64_t y = 0; y < d_v; ++y) at(S, c, y) *= std::exp(f.log_decay(t, h, c));
        }
        for (std::int64_t y = 0; y < d_v; ++y) {
          double predicted = 0.0;
          for (std::int64_t c = 0; c < d_k; ++c) predicted += at(k, t, key + c) * at(S, c, y);
          const double u = f.largest_beta * logistic(at(strengths, t, h)) * (at(v, t, h * d_v + y) - predicted);
          for (std::int64_t c = 0; c < d_k; ++c) {
            at(S, c, y) += at(k, t, key + c) * u;
            at(o, t, h * d_v + y) += at(q, t, key + c) * at(S, c, y) / std::sqrt(static_cast<double>(d_k));
          }
        }
      }
    }
    normalise(o, d_v,
              [&](double squares, std::int64_t n) { return std::sqrt(squares / static_cast<double>(n) + norm_eps); });
    for (std::int64_t t = 0; t < o.dim(0); ++t) {
      for (std::int64_t c = 0; c < o.dim(1); ++c) at(o, t, c) *= parameter("norm_w", c % d_v);
    }
    if (f.gate) {
      const Tensor gate = has("wg") ? product(x, "wg") : product(product(x, "wg_a"), "wg_b");
      for (std::int64_t t = 0; t < o.dim(0); ++t) {
        for (std::int64_t c = 0; c < o.dim(1); ++c) {
          if (has("bg")) at(gate, t, c) += parameter("bg", c);
          at(o, t, c) *= f.gate(at(gate, t, c));
        }
      }
    }
    const Tensor expected = product(o, "wo");
    EXPECT_TRUE(close(forward(x, documents), expected, 1e-12, 1e-10));
  }

  std::int64_t key_heads = 2, heads = 2, d_k = 4, d_v = 6;
  double norm_eps;
  DocumentsPtr documents = Documents::from_lengths(std::vector<std::int32_t>{5, 1, 2, 3, 7});
  Tensor x = normal({18, site.width}, 3);

 private:
  static OptionList with_heads(const OptionList& options) {
    OptionList all{{"heads", std::int64_t{2}}, {"head_dim", std::int64_t{4}}, {"value_dim", std::int64_t{6}}};
    all.insert(all.end(), options.begin(), options.end());
    return all;
  }
  std::int64_t position(std::int64_t t) const { return documents->positions()[static_cast<std::size_t>(t)]; }

  // silu(conv(x w^T)), the convolution within documents.
  Tensor features(const std::string& weight, const std::string& filter) {
    const Tensor projected = product(x, weight);
    const Tensor y = cast(projected, DType::f64);
    const Parameter* taps = store.find(filter);
    for (std::int64_t t = 0; t < y.dim(0); ++t) {
      for (std::int64_t c = 0; c < y.dim(1); ++c) {
        double u = at(projected, t, c);
        if (taps != nullptr) {
          u = 0.0;
          const std::int64_t w = taps->shape[1];
          for (std::int64_t j = 0; j < std::min(w, position(t) + 1); ++j) {
            u += parameter(filter, c * w + w - 1 - j) * at(projected, t - j, c);
          }
        }
        at(y, t, c) = u * logistic(u);
      }
    }
    return y;
  }

  // Groups of `n` columns divided by root(sum of squares, n).
  template <class Root>
  static void normalise(const Tensor& a, std::int64_t n, Root&& root) {
    for (std::int64_t t = 0; t < a.dim(0); ++t) {
      for (std::int64_t first = 0; first < a.dim(1); first += n) {
        double squares = 0.0;
        for (std::int64_t c = first; c < first + n; ++c) squares += at(a, t, c) * at(a, t, c);
        for (std::int64_t c = first; c < first + n; ++c) at(a, t, c) /= root(squares, n);
      }
    }
  }
};

}  // namespace weft::testing
