// titans_coefficients_cpu.h for a thread block: how steps, momentum and forgetting of one chunk combine, and the way
// back. Columns of M and c do not depend on one another: a thread takes one from its token to the chunk's end.
//
// n <= C tokens; M, c, A, B, f as there.
#pragma once

#include "modules/families/block_products.cuh"

namespace weft {

struct TitansCoefficientArrays {
  BlockArray keep, mu, rate, A, B, f, M, c;
  BlockArray dkeep, dmu, drate, dA, dB, df, dM, dc;

  TitansCoefficientArrays() = default;
  TitansCoefficientArrays(std::int64_t C, bool backward, BlockLayout& layout) {
    for (BlockArray* x : {&keep, &mu, &rate, &A, &B, &f}) *x = layout.take(C);
    for (BlockArray* x : {&M, &c}) *x = layout.take(C * C);
    if (!backward) return;
    for (BlockArray* x : {&dkeep, &dmu, &drate, &dA, &dB, &df}) *x = layout.take(C);
    for (BlockArray* x : {&dM, &dc}) *x = layout.take(C * C);
  }
};

struct TitansCoefficientsCuda {
  int n;
  float *keep, *mu, *rate;     // [n]
  float *A, *B, *f;            // [n]
  float *M, *c;                // [n, n], zero right of the diagonal
  float *dkeep, *dmu, *drate;  // gradients; drate, dA, dB, df, dM, dc are added to between clear() and finish()
  float *dA, *dB, *df, *dM, *dc;

  __device__ TitansCoefficientsCuda(int tokens, const TitansCoefficientArrays& a, const BlockMemory& m)
      : n(tokens),
        keep(m[a.keep]),
        mu(m[a.mu]),
        rate(m[a.rate]),
        A(m[a.A]),
        B(m[a.B]),
        f(m[a.f]),
        M(m[a.M]),
        c(m[a.c]),
        dkeep(m[a.dkeep]),
        dmu(m[a.dmu]),
        drate(m[a.drate]),
        dA(m[a.dA]),
        dB(m[a.dB]),
        df(m[a.df]),
        dM(m[a.dM]),
        dc(m[a.dc]) {}

  // From keep, mu and n.
  __device__ void compute() const {
    block_for(n + 1, [&](int j) {
      if (j == n) {
        float a = 1.0F, b = 1.0F, sum = 0.0F;
        for (int t = 0; t < n; ++t) {
          A[t] = a = keep[t] * a;
          B[t] = b = mu[t] * b;
          f[t] = sum = keep[t] * sum + b;
        }
        return;
      }
      for (int t = 0; t < j; ++t) M[t * n + j] = c[t * n + j] = 0.0F;
      float left = 1.0F, added = 1.0F;
      M[j * n + j] = c[j * n + j] = 1.0F;
      for (int t = j + 1; t < n; ++t) {
        M[t * n + j] = left = mu[t] * left;
        c[t * n + j] = added = keep[t] * added + left;
      }
    });
  }

  __device__ void clear_gradients() const {
    block_for(n, [&](int t) { drate[t] = dA[t] = dB[t] = df[t] = 0.0F; });
    block_for(n * n, [&](int i) { dM[i] = dc[i] = 0.0F; });
  }

  // The recurrences of compute() in reverse: sets dkeep and dmu.
  __device__ void finish_gradients() const {
    block_for(n + 1, [&](int j) {
      if (j == n) {
        for (int t = n - 1; t >= 0; --t) {
          dB[t] += df[t];
          if (t == 0) break;
          df[t - 1] += keep[t] * df[t];
          dA[t - 1] += keep[t] * dA[t];
          dB[t - 1] += mu[t] * dB[t];
        }
        return;
      }
      for (int t = n - 1; t > j; --t) {
        const int at = t * n + j;
        const float to_c = dc[at], to_M = dM[at] + to_c;
        dM[at] = to_M;
        dc[at - n] += keep[t] * to_c;
        dM[at - n] += mu[t] * to_M;
      }
    });
    block_rows(n, [&](int t, int lane) {
      const int row = t * n;
      float to_keep = warp_sum_of(t, lane, [&](int j) { return dc[row + j] * c[row - n + j]; });
      float to_mu = warp_sum_of(t, lane, [&](int j) { return dM[row + j] * M[row - n + j]; });
      if (lane != 0) return;
      to_keep += t > 0 ? df[t] * f[t - 1] + dA[t] * A[t - 1] : dA[t];
      to_mu += dB[t] * (t > 0 ? B[t - 1] : 1.0F);
      dkeep[t] = to_keep;
      dmu[t] = to_mu;
    });
  }
};

}  // namespace weft
