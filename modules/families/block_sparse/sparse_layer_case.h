// For the tests of the family's mixers: a layer with generic weights, and its pieces in plain loops in fp64.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>

#include "modules/families/block_sparse/block_sparse_attention.h"
#include "modules/mixer.h"
#include "tests/support/compare.h"
#include "tests/support/random.h"

namespace weft::testing::block_sparse {

using OptionList = std::vector<std::pair<std::string, OptionValue>>;

inline OptionValue integer(std::int64_t value) {
  return value;
}

struct SparseLayerCase {
  SparseLayerCase(const MixerType& type, const OptionList& options, std::int64_t layer_width = 12,
                  DType dtype = DType::f64)
      : width(layer_width) {
    Options values(type.options);
    for (const auto& [key, value] : options) values.set(key, value);
    mixer = type.create(ParameterScope(store), {.width = width, .layers = 4, .layer = 1, .max_tokens = 256}, values,
                        "[mixer.test]");
    store.initialise(1, dtype);
    std::uint64_t seed = 10;
    for (Parameter* p : store.all()) {
      const double scale = p->shape.rank() == 1 ? 0.5 : 1.0 / std::sqrt(static_cast<double>(p->shape.back()));
      p->value.copy_from(normal(p->shape, seed++, scale));
    }
  }

  const Tensor& weight(const std::string& name) {
    Parameter* p = store.find(name);
    WEFT_CHECK(p != nullptr, "no parameter {}", name);
    return p->value;
  }

  Tensor forward(const Tensor& x, const DocumentsPtr& documents) {
    Tape tape(heap_allocator(Hygiene::hostile), Tape::Mode::inference);
    return cast(mixer->forward(tape, Tape::constant(x), documents, nullptr).value, x.dtype());
  }

  // The planned bytes are those that a recording tape holds in fp32.
  void expect_saved_bytes() {
    store.initialise(1, DType::f32);
    const std::int32_t T = 1024;
    const auto memory = heap_allocator();
    Tape tape(memory);
    Tensor input(Shape{T, width}, DType::f32, memory);
    input.fill_zero();
    (void)mixer->forward(tape, tape.leaf(input), Documents::single(T), nullptr);
    input = {};
    const double planned = mixer->cost(T, T).saved_bytes;
    EXPECT_NEAR(static_cast<double>(memory->stats().current_bytes), planned, 0.01 * planned);
  }

  std::int64_t width;
  ParameterStore store;
  std::unique_ptr<Mixer> mixer;
};

// The message of the configuration error with which a layer of width 12 is refused.
inline std::string creation_error(const MixerType& type, const OptionList& options) {
  try {
    const SparseLayerCase layer(type, options);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::config);
    return error.what();
  }
  return "no error";
}

// x w^T for each row.
inline Tensor product(const Tensor& x, const Tensor& w) {
  const Tensor y = Tensor::zeros({x.dim(0), w.dim(0)}, DType::f64);
  for (std::int64_t i = 0; i < y.numel(); ++i) {
    for (std::int64_t c = 0; c < w.dim(1); ++c) {
      y.data<double>()[i] +=
          x.data<double>()[i / w.dim(0) * w.dim(1) + c] * w.data<double>()[i % w.dim(0) * w.dim(1) + c];
    }
  }
  return y;
}

// Rows of heads of `width` channels, turned to their positions.
inline void rotate(const Tensor& rows, std::int64_t width, const std::vector<std::int32_t>& positions) {
  const std::int64_t heads = rows.dim(1) / width, half = width / 2;
  for (std::int64_t i = 0; i < rows.dim(0) * heads; ++i) {
    double* x = rows.data<double>() + i * width;
    for (std::int64_t c = 0; c < half; ++c) {
      const double angle = positions[static_cast<std::size_t>(i / heads)] *
                           std::pow(10000.0, -static_cast<double>(c) / static_cast<double>(half));
      const double a = x[c], b = x[c + half];
      x[c] = a * std::cos(angle) - b * std::sin(angle);
      x[c + half] = a * std::sin(angle) + b * std::cos(angle);
    }
  }
}

// Probabilities of keys k[row] for a query, rows `step` apart.
inline std::vector<double> probabilities(const double* q, const double* k, std::int64_t step, std::int64_t width,
                                         const std::vector<std::int64_t>& rows) {
  std::vector<double> p;
  double mass = 0.0;
  for (const std::int64_t row : rows) {
    double dot = 0.0;
    for (std::int64_t c = 0; c < width; ++c) dot += q[c] * k[row * step + c];
    p.push_back(std::exp(dot / std::sqrt(static_cast<double>(width))));
    mass += p.back();
  }
  for (double& value : p) value /= mass;
  return p;
}

// The n blocks up to `own` that are forced or have the largest scores, ties to the smaller index.
inline std::vector<std::int64_t> best_blocks(const std::vector<double>& score, std::int64_t own, std::int64_t n,
                                             std::int64_t first, std::int64_t local) {
  std::vector<std::int64_t> order;
  for (std::int64_t j = 0; j <= own; ++j) order.push_back(j);
  const auto forced = [&](std::int64_t j) { return j < first || j > own - local; };
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    if (forced(a) != forced(b)) return forced(a);
    return !forced(a) && score[static_cast<std::size_t>(a)] > score[static_cast<std::size_t>(b)];
  });
  if (static_cast<std::int64_t>(order.size()) > n) order.resize(static_cast<std::size_t>(n));
  std::sort(order.begin(), order.end());
  return order;
}

// Rows of the tokens of some blocks up to position t, in a document that begins at row `begin`.
inline std::vector<std::int64_t> tokens_of(const std::vector<std::int64_t>& blocks, std::int64_t block, std::int64_t t,
                                           std::int64_t begin) {
  std::vector<std::int64_t> rows;
  for (const std::int64_t j : blocks) {
    for (std::int64_t u = j * block; u < std::min((j + 1) * block, t + 1); ++u) rows.push_back(begin + u);
  }
  return rows;
}

// A layer with one set of keys and values (SparseAttentionLayer) in plain loops. H_Q, H_KV heads of width D.
struct SharedLayerFormula {
  std::int64_t H_Q, H_KV, D, block;

  // Blocks that head h of the query at position t chooses; q [tokens, H_Q D], k [tokens, H_KV D] of the document.
  using Choice =
      std::function<std::vector<std::int64_t>(std::int64_t t, std::int64_t h, const Tensor& q, const Tensor& k)>;

  static void normalise(const Tensor& rows, const Tensor& w) {
    const std::int64_t width = w.numel();
    for (std::int64_t i = 0; i < rows.numel() / width; ++i) {
      double* x = rows.data<double>() + i * width;
      double squares = 0.0;
      for (std::int64_t c = 0; c < width; ++c) squares += x[c] * x[c];
      const double r = 1.0 / std::sqrt(squares / static_cast<double>(width) + 1e-6);
      for (std::int64_t c = 0; c < width; ++c) x[c] *= r * w.data<double>()[c];
    }
  }

  Tensor operator()(SparseLayerCase& layer, const Tensor& x, const Documents& documents, const Choice& choose) const {
    const Tensor q = product(x, layer.weight("wq")), k = product(x, layer.weight("wk")),
                 v = product(x, layer.weight("wv"));
    normalise(q, layer.weight("q_norm_w"));
    normalise(k, layer.weight("k_norm_w"));
    rotate(q, D, documents.positions());
    rotate(k, D, documents.positions());
    const Tensor o = Tensor::zeros({x.dim(0), H_Q * D}, DType::f64);
    for (std::int64_t n = 0; n < documents.count(); ++n) {
      const std::int64_t begin = documents.begin(n), end = documents.end(n);
      for (std::int64_t t = 0; t < end - begin; ++t) {
        for (std::int64_t h = 0; h < H_Q; ++h) {
          const std::int64_t row = begin + t, head = h / (H_Q / H_KV);
          const std::vector<std::int64_t> tokens =
              tokens_of(choose(t, h, q.rows(begin, end), k.rows(begin, end)), block, t, begin);
          const std::vector<double> p =
              probabilities(q.data<double>() + row * H_Q * D + h * D, k.data<double>() + head * D, H_KV * D, D, tokens);
          for (std::size_t i = 0; i < tokens.size(); ++i) {
            for (std::int64_t c = 0; c < D; ++c) {
              o.data<double>()[row * H_Q * D + h * D + c] +=
                  p[i] * v.data<double>()[tokens[i] * H_KV * D + head * D + c];
            }
          }
        }
      }
    }
    return product(o, layer.weight("wo"));
  }
};

// Means of a head's keys over spans of a document: [spans, D].
inline Tensor span_means(const Tensor& k, std::int64_t head, std::int64_t D, KeySpan span) {
  const std::int64_t spans = span.count(k.dim(0));
  const Tensor means = Tensor::zeros({spans, D}, DType::f64);
  for (std::int64_t i = 0; i < spans * span.length; ++i) {
    const double* row = k.data<double>() + (i / span.length * span.stride + i % span.length) * k.dim(1) + head * D;
    for (std::int64_t c = 0; c < D; ++c) means.data<double>()[i / span.length * D + c] += row[c] / span.length;
  }
  return means;
}

}  // namespace weft::testing::block_sparse
