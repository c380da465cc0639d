// How steps, momentum and forgetting of one chunk of titans_memory.h combine, and the way back.
//
// n <= C tokens. M_tj = prod_{j<s<=t} mu_s is what is left in Z_t of the step of token j, c_tj what it has added to
// W_t; A_t, f_t and B_t are the same for the W and Z of the chunk's start:
//   M_t = mu_t M_{t-1},  M_tt = 1     c_t = keep_t c_{t-1} + M_t     A_t = keep_t A_{t-1}
//   B_t = mu_t B_{t-1}                f_t = keep_t f_{t-1} + B_t     A = B = 1, f = 0 before the chunk
// Rows are built by these recurrences: products of factors in [0, 1], no logarithms and no quotients.
#pragma once

#include <algorithm>

#include "autograd/carver.h"

namespace weft {

template <class T>
struct TitansCoefficients {
  std::int64_t n = 0;
  T *keep, *mu, *rate;     // [n]
  T *A, *B, *f;            // [n]
  T *M, *c;                // [n, n], zero right of the diagonal
  T *dkeep, *dmu, *drate;  // gradients; drate, dA, dB, df, dM, dc are added to between clear() and finish()
  T *dA, *dB, *df, *dM, *dc;

  TitansCoefficients(std::int64_t C, Carver<T>& carver) {
    for (T** x : {&keep, &mu, &rate, &A, &B, &f, &dkeep, &dmu, &drate, &dA, &dB, &df}) *x = carver.take(C);
    for (T** x : {&M, &c, &dM, &dc}) *x = carver.take(C * C);
  }

  // From keep, mu and n.
  void compute() const {
    T a = 1, b = 1, sum = 0;
    for (std::int64_t t = 0; t < n; ++t) {
      A[t] = a = keep[t] * a;
      B[t] = b = mu[t] * b;
      f[t] = sum = keep[t] * sum + b;
      T *M_t = M + t * n, *c_t = c + t * n;
#pragma omp simd
      for (std::int64_t j = 0; j < t; ++j) {
        M_t[j] = mu[t] * M_t[j - n];
        c_t[j] = keep[t] * c_t[j - n] + M_t[j];
      }
      M_t[t] = c_t[t] = T(1);
      std::fill(M_t + t + 1, M_t + n, T(0));
      std::fill(c_t + t + 1, c_t + n, T(0));
    }
  }

  void clear_gradients() const {
    for (T* x : {drate, dA, dB, df}) std::fill(x, x + n, T(0));
    for (T* x : {dM, dc}) std::fill(x, x + n * n, T(0));
  }

  // The recurrences of compute() in reverse: sets dkeep and dmu.
  void finish_gradients() const {
    for (std::int64_t t = n - 1; t >= 0; --t) {
      const T a = t > 0 ? A[t - 1] : T(1), b = t > 0 ? B[t - 1] : T(1), sum = t > 0 ? f[t - 1] : T(0);
      dB[t] += df[t];
      T to_keep = df[t] * sum + dA[t] * a, to_mu = dB[t] * b;
      T *dM_t = dM + t * n, *dc_t = dc + t * n;
      const T *M_t = M + t * n, *c_t = c + t * n;
#pragma omp simd reduction(+ : to_keep, to_mu)
      for (std::int64_t j = 0; j < t; ++j) {
        dM_t[j] += dc_t[j];
        to_keep += dc_t[j] * c_t[j - n];
        to_mu += dM_t[j] * M_t[j - n];
        dc_t[j - n] += keep[t] * dc_t[j];
        dM_t[j - n] += mu[t] * dM_t[j];
      }
      dkeep[t] = to_keep;
      dmu[t] = to_mu;
      if (t == 0) break;
      df[t - 1] += keep[t] * df[t];
      dA[t - 1] += keep[t] * dA[t];
      dB[t - 1] += mu[t] * dB[t];
    }
  }
};

}  // namespace weft
