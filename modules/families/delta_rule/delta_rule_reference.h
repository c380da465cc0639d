// The oracle of delta_rule.h: token by token in fp64, written from the recurrence, not from the chunked form.
// Tensors of the argument structs are f64; the chunk tables are not read.
#pragma once

#include <cmath>
#include <vector>

#include "modules/families/delta_rule/delta_rule.h"

namespace weft {

namespace reference {

// What one token of one value head reads; a key head serves H / H_K value heads.
struct DeltaToken {
  DeltaToken(const DeltaRuleProblem& p_, std::int64_t t, std::int64_t h)
      : p(p_),
        head(t * p.H + h),
        key((t * p.H_K + h / (p.H / p.H_K)) * p.d_k),
        value(head * p.d_v),
        q(static_cast<const double*>(p.q) + key),
        k(static_cast<const double*>(p.k) + key),
        v(static_cast<const double*>(p.v) + value),
        beta(static_cast<const double*>(p.beta)[head]) {}

  // e^{g_t} of key channel x.
  double decay(std::int64_t x) const {
    const auto* g = static_cast<const double*>(p.g);
    if (p.decay == DeltaDecay::none) return 1.0;
    return std::exp(p.decay == DeltaDecay::scalar ? g[head] : g[head * p.d_k + x]);
  }

  const DeltaRuleProblem& p;
  std::int64_t head, key, value;  // first elements in [T,H], [T,H_K,d_k], [T,H,d_v]
  const double *q, *k, *v;
  double beta;
};

using Matrix = std::vector<double>;  // [d_k, d_v]

// S <- diag(e^{g_t}) S; the prediction error w = v - k S~; S <- S~ + k^T beta w. Returns {S~, w}.
inline std::pair<Matrix, std::vector<double>> delta_step(const DeltaToken& at, Matrix& S) {
  const std::int64_t d_k = at.p.d_k, d_v = at.p.d_v;
  std::vector<double> w(at.v, at.v + d_v);
  for (std::int64_t x = 0; x < d_k; ++x) {
    const double e = at.decay(x);
    for (std::int64_t y = 0; y < d_v; ++y) {
      double& s = S[static_cast<std::size_t>(x * d_v + y)];
      s *= e;
      w[static_cast<std::size_t>(y)] -= at.k[x] * s;
    }
  }
  const Matrix decayed = S;
  for (std::int64_t x = 0; x < d_k; ++x) {
    for (std::int64_t y = 0; y < d_v; ++y) {
      S[static_cast<std::size_t>(x * d_v + y)] += at.k[x] * at.beta * w[static_cast<std::size_t>(y)];
    }
  }
  return {decayed, w};
}

// The state of document n and head h in `states` [N, H, d_k, d_v]; null: zero.
inline Matrix state_of(const DeltaRuleProblem& p, const void* states, std::int64_t n, std::int64_t h) {
  const std::int64_t size = p.d_k * p.d_v;
  Matrix S(static_cast<std::size_t>(size), 0.0);
  if (states != nullptr) {
    const double* from = static_cast<const double*>(states) + (n * p.H + h) * size;
    S.assign(from, from + size);
  }
  return S;
}

inline void keep_state(const DeltaRuleProblem& p, const Matrix& S, std::int64_t n, std::int64_t h, void* states) {
  if (states != nullptr) {
    std::copy(S.begin(), S.end(), static_cast<double*>(states) + (n * p.H + h) * p.d_k * p.d_v);
  }
}

}  // namespace reference

inline void delta_rule_forward_reference(const DeltaRuleForward& a) {
  for (std::int64_t n = 0; n < a.N; ++n) {
    for (std::int64_t h = 0; h < a.H; ++h) {
      reference::Matrix S = reference::state_of(a, a.s0, n, h);
      for (std::int64_t t = a.cu_seqlens[n]; t < a.cu_seqlens[n + 1]; ++t) {
        const reference::DeltaToken at(a, t, h);
        reference::delta_step(at, S);
        double* o = static_cast<double*>(a.o) + at.value;
        for (std::int64_t y = 0; y < a.d_v; ++y) {
          o[y] = 0.0;
          for (std::int64_t x = 0; x < a.d_k; ++x) {
            o[y] += a.scale * at.q[x] * S[static_cast<std::size_t>(x * a.d_v + y)];
          }
        }
      }
      reference::keep_state(a, S, n, h, a.st);
    }
  }
}

// Reverse recurrence, dS starting as dS_T, with the error w_t = v_t - k_t S~_t and u_t = beta_t w_t:
//   dS += s q_t^T dO_t;  dq_t = s dO_t S_t^T;  du_t = k_t dS;  dk_t = u_t dS^T
//   dr_t = beta_t du_t;  dbeta_t = <du_t, w_t>;  dv_t = dr_t
//   dS~ = dS - k_t^T dr_t;  dk_t -= dr_t S~_t^T;  dg_t = rowsum(S~_t * dS~);  dS <- diag(e^{g_t}) dS~
// All gradients are overwritten; d_o and dst may be null.
inline void delta_rule_backward_reference(const DeltaRuleBackward& a) {
  auto* dq = static_cast<double*>(a.dq);
  auto* dk = static_cast<double*>(a.dk);
  auto* dg = static_cast<double*>(a.dg);
  std::fill(dq, dq + a.T * a.H_K * a.d_k, 0.0);
  std::fill(dk, dk + a.T * a.H_K * a.d_k, 0.0);
  for (std::int64_t n = 0; n < a.N; ++n) {
    for (std::int64_t h = 0; h < a.H; ++h) {
      const std::int64_t begin = a.cu_seqlens[n], end = a.cu_seqlens[n + 1];
      std::vector<reference::Matrix> decayed, after;  // S~_t and S_t of every token
      std::vector<std::vector<double>> errors;
      reference::Matrix state = reference::state_of(a, a.s0, n, h);
      for (std::int64_t t = begin; t < end; ++t) {
        auto [before, error] = reference::delta_step(reference::DeltaToken(a, t, h), state);
        decayed.push_back(std::move(before));
        errors.push_back(std::move(error));
        after.push_back(state);
      }
      reference::Matrix dS = reference::state_of(a, a.dst, n, h);
      std::vector<double> du(static_cast<std::size_t>(a.d_v));
      for (std::int64_t t = end - 1; t >= begin; --t) {
        const reference::DeltaToken at(a, t, h);
        const auto index = static_cast<std::size_t>(t - begin);
        const double* d_o = a.d_o == nullptr ? nullptr : static_cast<const double*>(a.d_o) + at.value;
        std::fill(du.begin(), du.end(), 0.0);
        for (std::int64_t x = 0; x < a.d_k; ++x) {
          for (std::int64_t y = 0; y < a.d_v; ++y) {
            const auto e = static_cast<std::size_t>(x * a.d_v + y);
            if (d_o != nullptr) {
              dS[e] += a.scale * at.q[x] * d_o[y];
              dq[at.key + x] += a.scale * d_o[y] * after[index][e];
            }
            du[static_cast<std::size_t>(y)] += at.k[x] * dS[e];
          }
        }
        double dbeta = 0.0;
        for (std::int64_t y = 0; y < a.d_v; ++y) {
          const auto e = static_cast<std::size_t>(y);
          dbeta += du[e] * errors[index][e];
          static_cast<double*>(a.dv)[at.value + y] = at.beta * du[e];
        }
        static_cast<double*>(a.dbeta)[at.head] = dbeta;
        if (a.decay == DeltaDecay::scalar) dg[at.head] = 0.0;
        for (std::int64_t x = 0; x < a.d_k; ++x) {
          const double decay = at.decay(x);
          double dg_x = 0.0;
          for (std::int64_t y = 0; y < a.d_v; ++y) {
            const auto e = static_cast<std::size_t>(x * a.d_v + y);
            const double dr = at.beta * du[static_cast<std::size_t>(y)];
            dk[at.key + x] += at.beta * errors[index][static_cast<std::size_t>(y)] * dS[e] - dr * decayed[index][e];
            const double d_decayed = dS[e] - at.k[x] * dr;
            dg_x += decayed[index][e] * d_decayed;
            dS[e] = decay * d_decayed;
          }
          if (a.decay == DeltaDecay::scalar) dg[at.head] += dg_x;
          if (a.decay == DeltaDecay::channel) dg[at.head * a.d_k + x] = dg_x;
        }
      }
      reference::keep_state(a, dS, n, h, a.ds0);
    }
  }
}

}  // namespace weft
