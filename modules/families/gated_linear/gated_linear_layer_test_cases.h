// The layer of the family written down naively in fp64, to compare mixers with; T tokens in two documents.
#pragma once

#include <cmath>
#include <functional>

#include "modules/mixer.h"
#include "tests/support/compare.h"
#include "tests/support/random.h"

namespace weft::testing {

using OptionList = std::vector<std::pair<std::string, OptionValue>>;

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

class LayerUnderTest {
 public:
  LayerUnderTest(const MixerType& type, const OptionList& options) {
    Options values(type.options);
    values.set("heads", heads);
    values.set("head_dim", d_k);
    for (const auto& [key, value] : options) values.set(key, value);
    mixer = type.create(ParameterScope(store), {.width = width, .layers = layers, .layer = layer, .max_tokens = 64},
                        values, "[mixer.test]");
    store.initialise(1, DType::f64);
    std::uint64_t seed = 10;
    for (Parameter* p : store.all()) p->value.copy_from(normal(p->shape, seed++, 0.5));
    x = normal({12, width}, 3);
  }

  // x w^T for the named parameter; x [T, in].
  Tensor product(const Tensor& input, const std::string& name) {
    const Tensor& w = store.find(name)->value;
    const Tensor y = Tensor::zeros({input.dim(0), w.dim(0)}, DType::f64);
    for (std::int64_t i = 0; i < y.numel(); ++i) {
      const double* a = input.data<double>() + i / w.dim(0) * w.dim(1);
      const double* b = w.data<double>() + i % w.dim(0) * w.dim(1);
      for (std::int64_t c = 0; c < w.dim(1); ++c) y.data<double>()[i] += a[c] * b[c];
    }
    return y;
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
  void expect_mixed(const Tensor& expected) {
    Tape tape(heap_allocator(Hygiene::hostile), Tape::Mode::inference);
    const Var y = mixer->forward(tape, Tape::constant(x), documents, nullptr);
    EXPECT_EQ(y.shape(), x.shape());
    EXPECT_TRUE(close(y.value, expected, 1e-12, 1e-10));
  }

  // The planned bytes are those that a recording tape holds in fp32.
  void expect_saved_bytes() {
    store.initialise(1, DType::f32);
    const std::int32_t T = 2048;
    const auto memory = heap_allocator();
    Tape tape(memory);
    Tensor input(Shape{T, width}, DType::f32, memory);
    input.fill_zero();
    (void)mixer->forward(tape, tape.leaf(input), Documents::single(T), nullptr);
    input = {};
    const double planned = mixer->cost(T, T).saved_bytes;
    EXPECT_NEAR(static_cast<double>(memory->stats().current_bytes), planned, 0.01 * planned);
  }

  std::int64_t heads = 2, d_k = 4, width = 10, layer = 1, layers = 3;
  ParameterStore store;
  std::unique_ptr<Mixer> mixer;
  DocumentsPtr documents = Documents::from_lengths(std::vector<std::int32_t>{5, 7});
  Tensor x;  // [12, width]

 private:
  static double& at(const Tensor& t, std::int64_t row, std::int64_t column) {
    return t.data<double>()[row * t.dim(1) + column];
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

// The message of the configuration error with which a layer of 2 heads of 4 channels and width 10 is refused.
inline std::string creation_error(const MixerType& type, const OptionList& options) {
  try {
    LayerUnderTest layer(type, options);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::config);
    return error.what();
  }
  return "no error";
}

}  // namespace weft::testing
