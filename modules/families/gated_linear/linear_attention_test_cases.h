// Normalised linear attention written down naively in fp64 as a table of weights, to compare mixers with.
#pragma once

#include "modules/families/gated_linear/gated_linear_layer_test_cases.h"

namespace weft::testing {

// Features of one head's query or key.
using Features = std::function<std::vector<double>(const std::vector<double>&)>;
// From the scores phi(q_t) . phi(k_j) of the tokens j of a document up to and including t to their weights.
using Weights = std::function<std::vector<double>(const std::vector<double>&)>;

// q, k [T, H d_x], v [T, H d_v] -> sum_j w_tj v_j [T, H d_v].
inline Tensor weighted_values(const LayerUnderTest& layer, const Tensor& q, const Tensor& k, const Tensor& v,
                              const Features& phi, const Weights& weights) {
  const std::int64_t d_x = q.dim(1) / layer.heads, d_v = v.dim(1) / layer.heads;
  const auto features = [&](const Tensor& x, std::int64_t t, std::int64_t h) {
    const double* row = x.data<double>() + t * x.dim(1) + h * d_x;
    return phi(std::vector<double>(row, row + d_x));
  };
  const Tensor o = Tensor::zeros(v.shape(), DType::f64);
  for (std::int64_t t = 0; t < v.dim(0); ++t) {
    const std::int64_t first = t - layer.documents->positions()[static_cast<std::size_t>(t)];
    for (std::int64_t h = 0; h < layer.heads; ++h) {
      const std::vector<double> query = features(q, t, h);
      std::vector<double> scores;
      for (std::int64_t j = first; j <= t; ++j) {
        const std::vector<double> key = features(k, j, h);
        scores.push_back(0.0);
        for (std::size_t x = 0; x < key.size(); ++x) scores.back() += query[x] * key[x];
      }
      const std::vector<double> w = weights(scores);
      for (std::int64_t j = first; j <= t; ++j) {
        for (std::int64_t y = h * d_v; y < (h + 1) * d_v; ++y) {
          o.data<double>()[t * v.dim(1) + y] +=
              w[static_cast<std::size_t>(j - first)] * v.data<double>()[j * v.dim(1) + y];
        }
      }
    }
  }
  return o;
}

// Scores divided by their sum.
inline std::vector<double> shares(std::vector<double> scores) {
  double sum = 0.0;
  for (const double s : scores) sum += s;
  for (double& s : scores) s /= sum;
  return scores;
}

}  // namespace weft::testing
