// The oracle of block_sparse_attention.h: one query at a time in fp64, over a list of the keys that it attends to,
// forward and its hand-derived reverse. For tests.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "modules/families/block_sparse/block_sparse_attention.h"

namespace weft {

struct BlockSparseProblem {
  BlockSparseShape shape;
  std::int64_t block;
  KeySpan span;
  const Documents* documents;
  const std::int32_t* idx;  // null: every block
  const double *q, *k, *v;
};

struct BlockSparseResult {
  std::vector<double> o, lse;
};
struct BlockSparseGradients {
  std::vector<double> dq, dk, dv;
};

namespace reference {

// Calls f(query row, query head, rows of the keys it attends to).
template <class F>
void for_queries(const BlockSparseProblem& p, F&& f) {
  const BlockSparseShape& s = p.shape;
  const std::vector<std::int32_t> rows = key_rows(*p.documents, p.span);
  for (std::int64_t n = 0; n < p.documents->count(); ++n) {
    for (std::int64_t t = p.documents->begin(n); t < p.documents->end(n); ++t) {
      for (std::int64_t h = 0; h < s.H_Q; ++h) {
        std::vector<std::int64_t> keys;
        const std::int64_t first = rows[static_cast<std::size_t>(n)];
        const std::int64_t count = rows[static_cast<std::size_t>(n) + 1] - first;
        for (std::int64_t i = 0; i < count; ++i) {
          const bool passed = i * p.span.stride + p.span.length - 1 <= t - p.documents->begin(n);
          bool chosen = p.idx == nullptr;
          const std::int32_t* slots = chosen ? nullptr : p.idx + (t * s.H_sel + h / (s.H_Q / s.H_sel)) * s.n;
          for (std::int64_t slot = 0; slot < s.n && !chosen && slots[slot] >= 0; ++slot) {
            chosen = slots[slot] == i / p.block;
          }
          if (passed && chosen) keys.push_back(first + i);
        }
        f(t, h, keys);
      }
    }
  }
}

inline std::vector<double> logits(const BlockSparseProblem& p, std::int64_t t, std::int64_t h,
                                  const std::vector<std::int64_t>& keys) {
  const BlockSparseShape& s = p.shape;
  std::vector<double> list;
  for (const std::int64_t key : keys) {
    double dot = 0.0;
    for (std::int64_t c = 0; c < s.D; ++c) {
      dot += p.q[(t * s.H_Q + h) * s.D + c] * p.k[(key * s.H_KV + h / (s.H_Q / s.H_KV)) * s.D + c];
    }
    list.push_back(dot / std::sqrt(static_cast<double>(s.D)));
  }
  return list;
}

}  // namespace reference

inline BlockSparseResult block_sparse_reference(const BlockSparseProblem& p) {
  const BlockSparseShape& s = p.shape;
  BlockSparseResult r{std::vector<double>(static_cast<std::size_t>(s.T * s.H_Q * s.D_V), 0.0),
                      std::vector<double>(static_cast<std::size_t>(s.T * s.H_Q), 0.0)};
  reference::for_queries(p, [&](std::int64_t t, std::int64_t h, const std::vector<std::int64_t>& keys) {
    const std::vector<double> a = reference::logits(p, t, h, keys);
    const std::int64_t row = t * s.H_Q + h;
    double& lse = r.lse[static_cast<std::size_t>(row)];
    lse = -std::numeric_limits<double>::infinity();
    if (keys.empty()) return;
    const double top = *std::max_element(a.begin(), a.end());
    double mass = 0.0;
    for (const double x : a) mass += std::exp(x - top);
    lse = top + std::log(mass);
    for (std::size_t i = 0; i < keys.size(); ++i) {
      const std::int64_t key = keys[i] * s.H_KV + h / (s.H_Q / s.H_KV);
      for (std::int64_t c = 0; c < s.D_V; ++c) {
        r.o[static_cast<std::size_t>(row * s.D_V + c)] += std::exp(a[i] - lse) * p.v[key * s.D_V + c];
      }
    }
  });
  return r;
}

inline BlockSparseGradients block_sparse_reference_backward(const BlockSparseProblem& p, const BlockSparseResult& r,
                                                            const double* d_o) {
  const BlockSparseShape& s = p.shape;
  const double scale = 1.0 / std::sqrt(static_cast<double>(s.D));
  BlockSparseGradients g{std::vector<double>(static_cast<std::size_t>(s.T * s.H_Q * s.D), 0.0),
                         std::vector<double>(static_cast<std::size_t>(s.S * s.H_KV * s.D), 0.0),
                         std::vector<double>(static_cast<std::size_t>(s.S * s.H_KV * s.D_V), 0.0)};
  reference::for_queries(p, [&](std::int64_t t, std::int64_t h, const std::vector<std::int64_t>& keys) {
    const std::vector<double> a = reference::logits(p, t, h, keys);
    const std::int64_t row = t * s.H_Q + h;
    double delta = 0.0;
    for (std::int64_t c = 0; c < s.D_V; ++c) {
      delta += d_o[row * s.D_V + c] * r.o[static_cast<std::size_t>(row * s.D_V + c)];
    }
    for (std::size_t i = 0; i < keys.size(); ++i) {
      const std::int64_t key = keys[i] * s.H_KV + h / (s.H_Q / s.H_KV);
      const double probability = std::exp(a[i] - r.lse[static_cast<std::size_t>(row)]);
      double dp = 0.0;
      for (std::int64_t c = 0; c < s.D_V; ++c) {
        dp += d_o[row * s.D_V + c] * p.v[key * s.D_V + c];
        g.dv[static_cast<std::size_t>(key * s.D_V + c)] += probability * d_o[row * s.D_V + c];
      }
      const double da = scale * probability * (dp - delta);
      for (std::int64_t c = 0; c < s.D; ++c) {
        g.dq[static_cast<std::size_t>(row * s.D + c)] += da * p.k[key * s.D + c];
        g.dk[static_cast<std::size_t>(key * s.D + c)] += da * p.q[row * s.D + c];
      }
    }
  });
  return g;
}

}  // namespace weft
