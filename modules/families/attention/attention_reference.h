// The definition of softmax attention and its hand-derived backward in fp64, token by token: what every kernel of
// attention.h is compared with. Knows nothing of tiles.
//
// For query i of head h, key/value head h / G, over its visible keys:
//   z_ij = scale <q_i, k_j>   a_ij = cap tanh(z_ij / cap)   lse_i = log(sum_j e^a_ij + e^sink_h)   p_ij = e^(a_ij -
//   lse_i) o_i = sum_j p_ij v_j
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "modules/families/attention/attention.h"

namespace weft {

struct AttentionProblem {
  AttentionShape shape;
  AttentionOptions options;
  const Documents* documents;
  const double *q, *k, *v, *sink_logit;  // sink_logit may be null
};

struct AttentionResult {
  std::vector<double> o, lse;
};

struct AttentionGradients {
  std::vector<double> dq, dk, dv, dsink_logit;
};

namespace reference {

// Rows of the keys that row i sees.
inline std::vector<std::int64_t> visible_keys(const AttentionProblem& a, std::int64_t i) {
  const Documents& d = *a.documents;
  std::int64_t n = 0;
  while (i >= d.end(n)) ++n;
  const auto position = [&](std::int64_t row) { return d.positions()[static_cast<std::size_t>(row)]; };
  std::vector<std::int64_t> keys;
  for (std::int64_t j = 0; j < a.shape.S; ++j) {
    const bool anchor = d.anchored() && j == 0 && n > 0;
    const bool same = j >= d.begin(n) && j < d.end(n);
    if (!anchor && (!same || position(j) > position(i))) continue;
    const bool near = a.options.window == 0 || position(i) - position(j) < a.options.window;
    if (anchor || near || position(j) < a.options.sink_tokens) keys.push_back(j);
  }
  return keys;
}

// a_ij for the given keys.
inline std::vector<double> logits(const AttentionProblem& a, std::int64_t i, std::int64_t h,
                                  const std::vector<std::int64_t>& keys) {
  const AttentionShape& s = a.shape;
  const double scale = a.options.scale != 0.0 ? a.options.scale : 1.0 / std::sqrt(static_cast<double>(s.D));
  const std::int64_t head = h / (s.H_Q / s.H_KV);
  std::vector<double> list;
  for (const std::int64_t j : keys) {
    double z = 0.0;
    for (std::int64_t c = 0; c < s.D; ++c) z += a.q[(i * s.H_Q + h) * s.D + c] * a.k[(j * s.H_KV + head) * s.D + c];
    z *= scale;
    list.push_back(a.options.soft_cap > 0.0 ? a.options.soft_cap * std::tanh(z / a.options.soft_cap) : z);
  }
  return list;
}

}  // namespace reference

inline AttentionResult attention_reference(const AttentionProblem& a) {
  const AttentionShape& s = a.shape;
  constexpr double kEmpty = -std::numeric_limits<double>::infinity();
  AttentionResult result;
  result.o.assign(static_cast<std::size_t>(s.T * s.H_Q * s.D_V), 0.0);
  result.lse.assign(static_cast<std::size_t>(s.T * s.H_Q), kEmpty);
  for (std::int64_t i = 0; i < s.T; ++i) {
    const std::vector<std::int64_t> keys = reference::visible_keys(a, i);
    for (std::int64_t h = 0; h < s.H_Q; ++h) {
      const std::vector<double> logit = reference::logits(a, i, h, keys);
      double top = a.sink_logit != nullptr ? a.sink_logit[h] : kEmpty;
      for (const double x : logit) top = std::max(top, x);
      if (top == kEmpty) continue;
      double mass = a.sink_logit != nullptr ? std::exp(a.sink_logit[h] - top) : 0.0;
      for (const double x : logit) mass += std::exp(x - top);
      const double lse = top + std::log(mass);
      result.lse[static_cast<std::size_t>(i * s.H_Q + h)] = lse;
      double* o = result.o.data() + (i * s.H_Q + h) * s.D_V;
      for (std::size_t x = 0; x < keys.size(); ++x) {
        const double* v = a.v + (keys[x] * s.H_KV + h / (s.H_Q / s.H_KV)) * s.D_V;
        const double p = std::exp(logit[x] - lse);
        for (std::int64_t c = 0; c < s.D_V; ++c) o[c] += p * v[c];
      }
    }
  }
  return result;
}

// d_o [T, H_Q, D_V]; dlse [T, H_Q] or null.
inline AttentionGradients attention_reference_backward(const AttentionProblem& a, const AttentionResult& result,
                                                       const double* d_o, const double* dlse) {
  const AttentionShape& s = a.shape;
  const double scale = a.options.scale != 0.0 ? a.options.scale : 1.0 / std::sqrt(static_cast<double>(s.D));
  AttentionGradients g;
  g.dq.assign(static_cast<std::size_t>(s.T * s.H_Q * s.D), 0.0);
  g.dk.assign(static_cast<std::size_t>(s.S * s.H_KV * s.D), 0.0);
  g.dv.assign(static_cast<std::size_t>(s.S * s.H_KV * s.D_V), 0.0);
  g.dsink_logit.assign(static_cast<std::size_t>(s.H_Q), 0.0);
  for (std::int64_t i = 0; i < s.T; ++i) {
    const std::vector<std::int64_t> keys = reference::visible_keys(a, i);
    for (std::int64_t h = 0; h < s.H_Q; ++h) {
      const std::int64_t row = i * s.H_Q + h;
      const std::vector<double> logit = reference::logits(a, i, h, keys);
      const double lse = result.lse[static_cast<std::size_t>(row)];
      double delta = dlse != nullptr ? -dlse[row] : 0.0;
      for (std::int64_t c = 0; c < s.D_V; ++c) {
        delta += d_o[row * s.D_V + c] * result.o[static_cast<std::size_t>(row * s.D_V + c)];
      }
      if (a.sink_logit != nullptr) {
        g.dsink_logit[static_cast<std::size_t>(h)] -= std::exp(a.sink_logit[h] - lse) * delta;
      }
      for (std::size_t x = 0; x < keys.size(); ++x) {
        const std::int64_t key = keys[x] * s.H_KV + h / (s.H_Q / s.H_KV);
        const double p = std::exp(logit[x] - lse);
        double dp = 0.0;
        for (std::int64_t c = 0; c < s.D_V; ++c) {
          dp += d_o[row * s.D_V + c] * a.v[key * s.D_V + c];
          g.dv[static_cast<std::size_t>(key * s.D_V + c)] += p * d_o[row * s.D_V + c];
        }
        const double ratio = a.options.soft_cap > 0.0 ? logit[x] / a.options.soft_cap : 0.0;
        const double dz = scale * p * (dp - delta) * (1.0 - ratio * ratio);
        for (std::int64_t c = 0; c < s.D; ++c) {
          g.dk[static_cast<std::size_t>(key * s.D + c)] += dz * a.q[row * s.D + c];
          g.dq[static_cast<std::size_t>(row * s.D + c)] += dz * a.k[key * s.D + c];
        }
      }
    }
  }
  return g;
}

}  // namespace weft
