// The oracle of gated_linear.h: token by token in fp64, written from the recurrence, not from the chunked form.
// Tensors of the argument structs are f64; the chunk tables are not read.
#pragma once

#include <cmath>
#include <vector>

#include "modules/families/gated_linear/gated_linear.h"

namespace weft {

namespace reference {

// e^{g_t} of key channel x of head h.
inline double decay(const GatedLinearProblem& p, std::int64_t t, std::int64_t h, std::int64_t x) {
  const auto* g = static_cast<const double*>(p.g);
  switch (p.kind) {
    case DecayKind::constant:
      return std::exp(g[h]);
    case DecayKind::scalar:
      return std::exp(g[t * p.H + h]);
    case DecayKind::vector:
      return std::exp(g[(t * p.H + h) * p.d_k + x]);
  }
  return 0.0;
}

// S <- diag(e^{g_t}) S + k_t^T v_t
inline void step(const GatedLinearProblem& p, std::int64_t t, std::int64_t h, std::vector<double>& S) {
  const double* k = static_cast<const double*>(p.k) + (t * p.H + h) * p.d_k;
  const double* v = static_cast<const double*>(p.v) + (t * p.H + h) * p.d_v;
  for (std::int64_t x = 0; x < p.d_k; ++x) {
    const double e = decay(p, t, h, x);
    for (std::int64_t y = 0; y < p.d_v; ++y) {
      double& s = S[static_cast<std::size_t>(x * p.d_v + y)];
      s = e * s + k[x] * v[y];
    }
  }
}

// The state before the first token of document n.
inline std::vector<double> initial_state(const GatedLinearProblem& p, std::int64_t n, std::int64_t h) {
  const std::int64_t size = p.d_k * p.d_v;
  std::vector<double> S(static_cast<std::size_t>(size), 0.0);
  if (p.s0 != nullptr) {
    const double* s0 = static_cast<const double*>(p.s0) + (n * p.H + h) * size;
    S.assign(s0, s0 + size);
  }
  return S;
}

}  // namespace reference

inline void gated_linear_forward_reference(const GatedLinearForward& a) {
  const std::int64_t size = a.d_k * a.d_v;
  for (std::int64_t n = 0; n < a.N; ++n) {
    for (std::int64_t h = 0; h < a.H; ++h) {
      std::vector<double> S = reference::initial_state(a, n, h);
      for (std::int64_t t = a.cu_seqlens[n]; t < a.cu_seqlens[n + 1]; ++t) {
        reference::step(a, t, h, S);
        const double* q = static_cast<const double*>(a.q) + (t * a.H + h) * a.d_k;
        double* o = static_cast<double*>(a.o) + (t * a.H + h) * a.d_v;
        for (std::int64_t y = 0; y < a.d_v; ++y) {
          o[y] = 0.0;
          for (std::int64_t x = 0; x < a.d_k; ++x) o[y] += a.scale * q[x] * S[static_cast<std::size_t>(x * a.d_v + y)];
        }
      }
      std::copy(S.begin(), S.end(), static_cast<double*>(a.st) + (n * a.H + h) * size);
    }
  }
}

// Reverse recurrence, dS starting as dS_T:
//   dS += s q_t^T dO_t;  dq_t = s dO_t S_t^T;  dk_t = v_t dS^T;  dv_t = k_t dS
//   d(e^{g_t}) = rowsum(S_{t-1} * dS), so dg_t = e^{g_t} rowsum(S_{t-1} * dS);  dS <- diag(e^{g_t}) dS
// All gradients are overwritten; d_o and dst may be null.
inline void gated_linear_backward_reference(const GatedLinearBackward& a) {
  const std::int64_t size = a.d_k * a.d_v;
  for (std::int64_t n = 0; n < a.N; ++n) {
    for (std::int64_t h = 0; h < a.H; ++h) {
      const std::int64_t begin = a.cu_seqlens[n];
      const std::int64_t end = a.cu_seqlens[n + 1];
      std::vector<std::vector<double>> before;  // S_{t-1} of every token, and the final state
      before.push_back(reference::initial_state(a, n, h));
      for (std::int64_t t = begin; t < end; ++t) {
        before.push_back(before.back());
        reference::step(a, t, h, before.back());
      }
      std::vector<double> dS(static_cast<std::size_t>(size), 0.0);
      if (a.dst != nullptr) {
        const double* dst = static_cast<const double*>(a.dst) + (n * a.H + h) * size;
        dS.assign(dst, dst + size);
      }
      for (std::int64_t t = end - 1; t >= begin; --t) {
        const std::vector<double>& S_before = before[static_cast<std::size_t>(t - begin)];
        const std::vector<double>& S = before[static_cast<std::size_t>(t - begin) + 1];
        const std::int64_t key = (t * a.H + h) * a.d_k;
        const std::int64_t value = (t * a.H + h) * a.d_v;
        const double* q = static_cast<const double*>(a.q) + key;
        const double* k = static_cast<const double*>(a.k) + key;
        const double* v = static_cast<const double*>(a.v) + value;
        auto* dg = static_cast<double*>(a.dg);
        auto* dv = static_cast<double*>(a.dv);
        for (std::int64_t y = 0; y < a.d_v; ++y) dv[value + y] = 0.0;
        if (a.kind == DecayKind::scalar) dg[t * a.H + h] = 0.0;
        for (std::int64_t x = 0; x < a.d_k; ++x) {
          const double e = reference::decay(a, t, h, x);
          double dq_x = 0.0, dk_x = 0.0, dg_x = 0.0;
          for (std::int64_t y = 0; y < a.d_v; ++y) {
            const auto at = static_cast<std::size_t>(x * a.d_v + y);
            const double d_o = a.d_o == nullptr ? 0.0 : static_cast<const double*>(a.d_o)[value + y];
            dS[at] += a.scale * q[x] * d_o;
            dq_x += a.scale * d_o * S[at];
            dk_x += v[y] * dS[at];
            dv[value + y] += k[x] * dS[at];
            dg_x += e * S_before[at] * dS[at];
            dS[at] *= e;
          }
          static_cast<double*>(a.dq)[key + x] = dq_x;
          static_cast<double*>(a.dk)[key + x] = dk_x;
          if (a.kind == DecayKind::scalar) dg[t * a.H + h] += dg_x;
          if (a.kind == DecayKind::vector) dg[key + x] = dg_x;
        }
      }
      if (a.ds0 != nullptr) std::copy(dS.begin(), dS.end(), static_cast<double*>(a.ds0) + (n * a.H + h) * size);
    }
  }
}

}  // namespace weft
