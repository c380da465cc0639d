// The layer of the family written down naively in fp64, to compare mixers with; T tokens in two documents.
#pragma once

#include <cmath>
#include <functional>

#include "tests/support/layer_case.h"

namespace weft::testing {

// What distinguishes one mixer of the family from another.
struct LayerFormula {
  std::int64_t d_v;
  double scale;
  bool joint_norm;
  std::function<double(double)> feature = nullptr;                            // of queries and keys
  std::function<double(double)> key = nullptr;                                // of keys, where they differ from queries
  std::function<double(double)> value = nullptr;                              // of values
  std::function<double(std::int64_t, std::int64_t)> rotation = nullptr;       // angle at a position, of pair i
  std::function<double(std::int64_t, std::int64_t, std::int64_t)> log_decay;  // token, head, key channel
  std::function<double(double)> gate = nullptr;
};

// A layer of 2 heads of 4 channels and width 10, unless the options say otherwise.
class LayerUnderTest : public LayerCase {
 public:
  LayerUnderTest(const MixerType& type, const OptionList& options)
      : LayerCase(type, with_heads(options), {.width = 10, .layers = 3, .layer = 1, .max_tokens = 64}) {
    randomise(0.5, 0.5);
  }

  void expect_output(const LayerFormula& f) {
    const Tensor q = keys(f, "wq", f.feature), k = keys(f, "wk", f.key ? f.key : f.feature), v = product(x, "wv");
    if (f.value) {
      for (double& a : v.span<double>()) a = f.value(a);
    }
    const Tensor o = Tensor::zeros(v.shape(), DType::f64);
    for (std::int64_t h = 0; h < heads; ++h) {
      std::vector<double> S;
      for (std::int64_t t = 0; t < x.dim(0); ++t) {
        if (position(t) == 0) S.assign(static_cast<std::size_t>(d_k * f.d_v), 0.0);
        for (std::int64_t i = 0; i < d_k * f.d_v; ++i) {
          const std::int64_t channel = i / f.d_v, y = i % f.d_v;
          double& s = S[static_cast<std::size_t>(i)];
          s = std::exp(f.log_decay(t, h, channel)) * s + at(k, t, h * d_k + channel) * at(v, t, h * f.d_v + y);
          at(o, t, h * f.d_v + y) += f.scale * at(q, t, h * d_k + channel) * s;
        }
      }
    }
    normalise(f, o);
    if (f.gate) {
      const bool low_rank = store.find("wg_a") != nullptr;
      const Tensor gate = low_rank ? product(product(x, "wg_a"), "wg_b") : product(x, "wg");
      for (std::int64_t i = 0; i < o.numel(); ++i) o.data<double>()[i] *= f.gate(gate.data<double>()[i]);
    }
    expect_mixed(product(o, "wo"));
  }

  // The mixer makes `expected` of x.
  void expect_mixed(const Tensor& expected) { EXPECT_TRUE(close(forward(x, documents), expected, 1e-12, 1e-10)); }

  std::int64_t heads = 2, d_k = 4;
  DocumentsPtr documents = Documents::from_lengths(std::vector<std::int32_t>{5, 7});
  Tensor x = normal({12, site.width}, 3);

 private:
  static OptionList with_heads(const OptionList& options) {
    OptionList all{{"heads", std::int64_t{2}}, {"head_dim", std::int64_t{4}}};
    all.insert(all.end(), options.begin(), options.end());
    return all;
  }
  std::int64_t position(std::int64_t t) const { return documents->positions()[static_cast<std::size_t>(t)]; }

  Tensor keys(const LayerFormula& f, const std::string& name, const std::function<double(double)>& feature) {
    const Tensor projected = product(x, name);
    if (feature) {
      for (double& a : projected.span<double>()) a = feature(a);
    }
    if (!f.rotation) return projected;
    for (std::int64_t t = 0; t < x.dim(0); ++t) {
      for (std::int64_t h = 0; h < heads; ++h) {
        for (std::int64_t i = 0; i < d_k / 2; ++i) {
          double& a = at(projected, t, h * d_k + i);
          double& b = at(projected, t, h * d_k + i + d_k / 2);
          const double angle = f.rotation(position(t), i);
          const double turned = a * std::cos(angle) - b * std::sin(angle);
          b = a * std::sin(angle) + b * std::cos(angle);
          a = turned;
        }
      }
    }
    return projected;
  }

  void normalise(const LayerFormula& f, const Tensor& o) {
    const Parameter* weight = store.find("norm_w");  // the simple norm has none
    const std::int64_t width_of_norm = f.joint_norm ? heads * f.d_v : f.d_v;
    ASSERT_TRUE(weight == nullptr || weight->value.numel() == width_of_norm);
    for (std::int64_t row = 0; row < o.numel() / width_of_norm; ++row) {
      double* values = o.data<double>() + row * width_of_norm;
      double squares = 0.0;
      for (std::int64_t c = 0; c < width_of_norm; ++c) squares += values[c] * values[c];
      const double r = 1.0 / std::sqrt(squares / static_cast<double>(width_of_norm) + 1e-6);
      for (std::int64_t c = 0; c < width_of_norm; ++c) {
        values[c] *= r * (weight == nullptr ? 1.0 : weight->value.data<double>()[c]);
      }
    }
  }
};

}  // namespace weft::testing
