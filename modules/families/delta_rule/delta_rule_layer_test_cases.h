// The layer of the family written down naively in fp64, to compare mixers with; documents shorter than the convolution
// among others.
#pragma once

#include <cmath>
#include <functional>

#include "modules/mixer.h"
#include "tests/support/compare.h"
#include "tests/support/random.h"

namespace weft::testing {

using OptionList = std::vector<std::pair<std::string, OptionValue>>;

inline double logistic(double a) {
  return 1.0 / (1.0 + std::exp(-a));
}
inline double softplus_of(double a) {
  return std::max(a, 0.0) + std::log1p(std::exp(-std::abs(a)));
}

// A table of numbers, row by row.
struct Table {
  std::int64_t rows, columns;
  std::vector<double> values;
  Table(std::int64_t rows_, std::int64_t columns_)
      : rows(rows_), columns(columns_), values(static_cast<std::size_t>(rows_ * columns_), 0.0) {}
  double& operator()(std::int64_t i, std::int64_t j) { return values[static_cast<std::size_t>(i * columns + j)]; }
  double operator()(std::int64_t i, std::int64_t j) const { return values[static_cast<std::size_t>(i * columns + j)]; }
};

// What distinguishes one mixer of the family from another.
struct DeltaLayerFormula {
  double largest_beta = 1.0;
  std::function<double(std::int64_t, std::int64_t, std::int64_t)> log_decay;  // token, value head, key channel
  std::function<double(double)> gate = nullptr;                               // of the output; null: none
};

class DeltaLayerUnderTest {
 public:
  DeltaLayerUnderTest(const MixerType& type, const OptionList& options) {
    Options values(type.options);
    values.set("heads", key_heads);
    values.set("head_dim", d_k);
    values.set("value_dim", d_v);
    for (const auto& [key, value] : options) values.set(key, value);
    if (values.integer("value_heads") > 0) heads = values.integer("value_heads");
    mixer = type.create(ParameterScope(store), {.width = width, .layers = 3, .layer = 1, .max_tokens = 64}, values,
                        "[mixer.test]");
    store.initialise(1, DType::f64);
    std::uint64_t seed = 10;
    for (Parameter* p : store.all()) p->value.copy_from(normal(p->shape, seed++, 0.5));
    x.values.assign(input.data<double>(), input.data<double>() + input.numel());
  }

  // Element i of a parameter.
  double parameter(const std::string& name, std::int64_t i) { return store.find(name)->value.data<double>()[i]; }

  // a w^T for the named parameter.
  Table product(const Table& a, const std::string& name) {
    const Parameter& w = *store.find(name);
    Table y(a.rows, w.shape[0]);
    for (std::int64_t i = 0; i < y.rows; ++i) {
      for (std::int64_t j = 0; j < y.columns; ++j) {
        for (std::int64_t c = 0; c < a.columns; ++c) y(i, j) += a(i, c) * parameter(name, j * a.columns + c);
      }
    }
    return y;
  }

  void expect_output(const DeltaLayerFormula& f) {
    Table q = features("wq", "conv_q"), k = features("wk", "conv_k");
    const Table v = features("wv", "conv_v"), strengths = product(x, "wb");
    normalise(q, d_k, [](double squares, std::int64_t) { return std::sqrt(squares + 1e-6); });
    normalise(k, d_k, [](double squares, std::int64_t) { return std::sqrt(squares + 1e-6); });
    Table o(x.rows, heads * d_v);
    for (std::int64_t h = 0; h < heads; ++h) {
      const std::int64_t key = h / (heads / key_heads) * d_k;
      Table S(d_k, d_v);
      for (std::int64_t t = 0; t < x.rows; ++t) {
        if (position(t) == 0) S = Table(d_k, d_v);
        for (std::int64_t c = 0; c < d_k; ++c) {
          for (std::int64_t y = 0; y < d_v; ++y) S(c, y) *= std::exp(f.log_decay(t, h, c));
        }
        for (std::int64_t y = 0; y < d_v; ++y) {
          double predicted = 0.0;
          for (std::int64_t c = 0; c < d_k; ++c) predicted += k(t, key + c) * S(c, y);
          const double u = f.largest_beta * logistic(strengths(t, h)) * (v(t, h * d_v + y) - predicted);
          for (std::int64_t c = 0; c < d_k; ++c) {
            S(c, y) += k(t, key + c) * u;
            o(t, h * d_v + y) += q(t, key + c) * S(c, y) / std::sqrt(static_cast<double>(d_k));
          }
        }
      }
    }
    normalise(o, d_v,
              [](double squares, std::int64_t n) { return std::sqrt(squares / static_cast<double>(n) + 1e-5); });
    for (std::int64_t t = 0; t < o.rows; ++t) {
      for (std::int64_t c = 0; c < o.columns; ++c) o(t, c) *= parameter("norm_w", c % d_v);
    }
    if (f.gate) {
      Table gate = store.find("wg") != nullptr ? product(x, "wg") : product(product(x, "wg_a"), "wg_b");
      for (std::int64_t t = 0; t < o.rows; ++t) {
        for (std::int64_t c = 0; c < o.columns; ++c) {
          if (store.find("bg") != nullptr) gate(t, c) += parameter("bg", c);
          o(t, c) *= f.gate(gate(t, c));
        }
      }
    }
    const Table expected = product(o, "wo");

    Tape tape(heap_allocator(Hygiene::hostile), Tape::Mode::inference);
    const Var y = mixer->forward(tape, Tape::constant(input), documents, nullptr);
    EXPECT_EQ(y.shape(), input.shape());
    EXPECT_TRUE(close(y.value, Tensor::from(y.shape(), expected.values), 1e-12, 1e-10));
  }

  // The planned bytes are those that a recording tape holds in fp32.
  void expect_saved_bytes() {
    store.initialise(1, DType::f32);
    const std::int32_t T = 2048;
    const auto memory = heap_allocator();
    Tape tape(memory);
    Tensor zeros(Shape{T, width}, DType::f32, memory);
    zeros.fill_zero();
    (void)mixer->forward(tape, tape.leaf(zeros), Documents::single(T), nullptr);
    zeros = {};
    const double planned = mixer->cost(T, T).saved_bytes;
    EXPECT_NEAR(static_cast<double>(memory->stats().current_bytes), planned, 0.01 * planned);
  }

  std::int64_t key_heads = 2, heads = 2, d_k = 4, d_v = 6, width = 10;
  ParameterStore store;
  std::unique_ptr<Mixer> mixer;
  DocumentsPtr documents = Documents::from_lengths(std::vector<std::int32_t>{5, 1, 2, 3, 7});
  Tensor input = normal({18, width}, 3);
  Table x{18, width};

 private:
  std::int64_t position(std::int64_t t) const { return documents->positions()[static_cast<std::size_t>(t)]; }

  // silu(conv(x w^T)), the convolution within documents.
  Table features(const std::string& weight, const std::string& filter) {
    const Table projected = product(x, weight);
    Table y = projected;
    const Parameter* taps = store.find(filter);
    for (std::int64_t t = 0; t < y.rows; ++t) {
      for (std::int64_t c = 0; c < y.columns; ++c) {
        double u = projected(t, c);
        if (taps != nullptr) {
          u = 0.0;
          const std::int64_t w = taps->shape[1];
          for (std::int64_t j = 0; j < std::min(w, position(t) + 1); ++j) {
            u += parameter(filter, c * w + w - 1 - j) * projected(t - j, c);
          }
        }
        y(t, c) = u * logistic(u);
      }
    }
    return y;
  }

  // Groups of `n` columns divided by root(sum of squares, n).
  template <class Root>
  static void normalise(Table& a, std::int64_t n, Root&& root) {
    for (std::int64_t t = 0; t < a.rows; ++t) {
      for (std::int64_t first = 0; first < a.columns; first += n) {
        double squares = 0.0;
        for (std::int64_t c = first; c < first + n; ++c) squares += a(t, c) * a(t, c);
        for (std::int64_t c = first; c < first + n; ++c) a(t, c) /= root(squares, n);
      }
    }
  }
};

// The message of the configuration error with which a layer of 2 key heads of 4 channels and width 10 is refused.
inline std::string creation_error(const MixerType& type, const OptionList& options) {
  try {
    DeltaLayerUnderTest layer(type, options);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::config);
    return error.what();
  }
  return "no error";
}

}  // namespace weft::testing
