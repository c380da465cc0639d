// For the tests of the family's mixers: a layer with generic weights, and its pieces in plain loops in fp64.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>

#include "modules/families/block_sparse/block_sparse_attention.h"
#include "tests/support/layer_case.h"

namespace weft::testing::block_sparse {

inline OptionValue integer(std::int64_t value) {
  return value;
}

// A layer of width 12, unless another is given.
struct SparseLayerCase : LayerCase {
  SparseLayerCase(const MixerType& type, const OptionList& options, std::int64_t layer_width = 12,
                  DType dtype = DType::f64)
      : LayerCase(type, options, {.width = layer_width, .layers = 4, .layer = 1, .max_tokens = 256}, dtype) {
    std::uint64_t seed = 10;
    for (Parameter* p : store.all()) {
      const double scale = p->shape.rank() == 1 ? 0.5 : 1.0 / std::sqrt(static_cast<double>(p->shape.back()));
      p->value.copy_from(normal(p->shape, seed++, scale));
    }
  }
};

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
    const Tensor q = layer.product(x, "wq"), k = layer.product(x, "wk"), v = layer.product(x, "wv");
    normalise(q, layer.value("q_norm_w"));
    normalise(k, layer.value("k_norm_w"));
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
    return layer.product(o, "wo");
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
