// One layer of the network that is the memory, over one chunk of one head: the chunked form and its adjoint.
//
// n <= C tokens; a layer maps rows x [n, in] by W [in, out]. Suffixes: k where the memory is trained (keys), q where it
// is read (queries). E is the gradient of a token's inner loss at the layer's output, Z the layer's momentum. A state
// is W, Z and Wc of all layers, `part` numbers each.
#pragma once

#include "autograd/blas.h"
#include "modules/families/titans_memory/titans_coefficients_cpu.h"
#include "modules/families/triangular_products.h"

namespace weft {

template <class T>
class TitansInnerLayer {
 public:
  TitansInnerLayer() = default;
  // Its matrix starts at `offset` of a part. With a null carver base it only counts.
  TitansInnerLayer(std::int64_t C, std::int64_t inputs, std::int64_t outputs, std::int64_t offset, std::int64_t part,
                   Carver<T>& carver)
      : in(inputs), out(outputs), at(offset), part_(part) {
    for (T** x : {&xk, &xq, &dxk, &dxq}) *x = carver.take(C * in);
    for (T** x : {&E, &dE, &xw_, &xz_, &cE_, &mE_, &Ady_, &fdy_}) *x = carver.take(C * out);
    for (T** x : {&P_, &X_, &dP_}) *x = carver.take(C * C);
  }

  std::int64_t in = 0, out = 0, at = 0;
  T *xk = nullptr, *xq = nullptr;  // [n, in]
  T* E = nullptr;                  // [n, out]
  T *dxk = nullptr, *dxq = nullptr, *dE = nullptr;

  // y = A (xq W) + f (xq Z) - X E,  X = tril(xq xk^T) * c rate
  void read(const TitansCoefficients<T>& s, const T* state, T* y) const {
    const std::int64_t n = s.n;
    gemm(Op::none, Op::transpose, n, n, in, T(1), xq, in, xk, in, T(0), P_, n);
    for (std::int64_t t = 0; t < n; ++t) {
      for (std::int64_t j = 0; j <= t; ++j) X_[t * n + j] = P_[t * n + j] * s.c[t * n + j] * s.rate[j];
      std::fill(X_ + t * n + t + 1, X_ + (t + 1) * n, T(0));
    }
    gemm(Op::none, Op::none, n, out, in, T(1), xq, in, state + at, out, T(0), xw_, out);
    gemm(Op::none, Op::none, n, out, in, T(1), xq, in, state + part_ + at, out, T(0), xz_, out);
    for (std::int64_t t = 0; t < n; ++t) {
      for (std::int64_t i = t * out; i < (t + 1) * out; ++i) y[i] = s.A[t] * xw_[i] + s.f[t] * xz_[i];
    }
    gemm(Op::none, Op::none, n, out, n, T(-1), X_, n, E, out, T(1), y, out);
  }

  // W' = A_n W + f_n Z - xk^T (rate c_n E),  Z' = B_n Z - xk^T (rate M_n E)
  void advance(const TitansCoefficients<T>& s, T* state) const {
    T *W = state + at, *Z = state + part_ + at;
    weigh(s);
    const T A = s.A[s.n - 1], B = s.B[s.n - 1], f = s.f[s.n - 1];
    for (std::int64_t i = 0; i < in * out; ++i) {
      W[i] = A * W[i] + f * Z[i];
      Z[i] *= B;
    }
    gemm(Op::transpose, Op::none, in, out, s.n, T(-1), xk, in, cE_, out, T(1), W, out);
    gemm(Op::transpose, Op::none, in, out, s.n, T(-1), xk, in, mE_, out, T(1), Z, out);
  }

  // The adjoint of advance(), first of all: sets dxk and dE, and dW and dZ become what they were before the chunk.
  void advance_gradient(const TitansCoefficients<T>& s, const T* state, T* dstate) const {
    const std::int64_t n = s.n, last = n - 1;
    const T *W = state + at, *Z = state + part_ + at;
    T *dW = dstate + at, *dZ = dstate + part_ + at;
    weigh(s);
    gemm(Op::none, Op::transpose, n, in, out, T(-1), cE_, out, dW, out, T(0), dxk, in);
    gemm(Op::none, Op::transpose, n, in, out, T(-1), mE_, out, dZ, out, T(1), dxk, in);
    gemm(Op::none, Op::none, n, out, in, T(-1), xk, in, dW, out, T(0), cE_, out);  // now gradients
    gemm(Op::none, Op::none, n, out, in, T(-1), xk, in, dZ, out, T(0), mE_, out);
    for (std::int64_t j = 0; j < n; ++j) {
      const T c = s.c[last * n + j], M = s.M[last * n + j];
      const T to_c = dot(cE_ + j * out, E + j * out, out), to_M = dot(mE_ + j * out, E + j * out, out);
      s.dc[last * n + j] += s.rate[j] * to_c;
      s.dM[last * n + j] += s.rate[j] * to_M;
      s.drate[j] += c * to_c + M * to_M;
      for (std::int64_t i = j * out; i < (j + 1) * out; ++i) dE[i] = s.rate[j] * (c * cE_[i] + M * mE_[i]);
    }
    s.dA[last] += dot(dW, W, in * out);
    s.df[last] += dot(dW, Z, in * out);
    s.dB[last] += dot(dZ, Z, in * out);
    for (std::int64_t i = 0; i < in * out; ++i) {
      dZ[i] = s.f[last] * dW[i] + s.B[last] * dZ[i];
      dW[i] *= s.A[last];
    }
  }

  // The adjoint of read(), after it: sets dxq; adds to dxk, dE, dW, dZ and the gradients of coefficients and rates.
  void read_gradient(const TitansCoefficients<T>& s, const T* state, const T* dy, T* dstate) const {
    const std::int64_t n = s.n;
    for (std::int64_t t = 0; t < n; ++t) {
      s.dA[t] += dot(dy + t * out, xw_ + t * out, out);
      s.df[t] += dot(dy + t * out, xz_ + t * out, out);
      for (std::int64_t i = t * out; i < (t + 1) * out; ++i) {
        Ady_[i] = s.A[t] * dy[i];
        fdy_[i] = s.f[t] * dy[i];
      }
    }
    gemm(Op::transpose, Op::none, n, out, n, T(-1), X_, n, dy, out, T(1), dE, out);
    gemm(Op::none, Op::transpose, n, n, out, T(-1), dy, out, E, out, T(0), dP_, n);  // of X at first
    for (std::int64_t t = 0; t < n; ++t) {
      T *dX = dP_ + t * n, *dc = s.dc + t * n;
      const T *P = P_ + t * n, *c = s.c + t * n;
#pragma omp simd
      for (std::int64_t j = 0; j <= t; ++j) {
        const T through = dX[j] * P[j];
        dc[j] += through * s.rate[j];
        s.drate[j] += through * c[j];
        dX[j] *= c[j] * s.rate[j];
      }
      std::fill(dX + t + 1, dX + n, T(0));
    }
    gemm(Op::none, Op::none, n, in, n, T(1), dP_, n, xk, in, T(0), dxq, in);
    gemm(Op::none, Op::transpose, n, in, out, T(1), Ady_, out, state + at, out, T(1), dxq, in);
    gemm(Op::none, Op::transpose, n, in, out, T(1), fdy_, out, state + part_ + at, out, T(1), dxq, in);
    gemm(Op::transpose, Op::none, n, in, n, T(1), dP_, n, xq, in, T(1), dxk, in);
    gemm(Op::transpose, Op::none, in, out, n, T(1), xq, in, Ady_, out, T(1), dstate + at, out);
    gemm(Op::transpose, Op::none, in, out, n, T(1), xq, in, fdy_, out, T(1), dstate + part_ + at, out);
  }

 private:
  // Rows rate_j c_nj E_j and rate_j M_nj E_j.
  void weigh(const TitansCoefficients<T>& s) const {
    const T *c = s.c + (s.n - 1) * s.n, *M = s.M + (s.n - 1) * s.n;
    for (std::int64_t j = 0; j < s.n; ++j) {
      for (std::int64_t i = j * out; i < (j + 1) * out; ++i) {
        cE_[i] = c[j] * s.rate[j] * E[i];
        mE_[i] = M[j] * s.rate[j] * E[i];
      }
    }
  }

  std::int64_t part_ = 0;
  T *xw_ = nullptr, *xz_ = nullptr;                // [n, out] xq W, xq Z
  T *cE_ = nullptr, *mE_ = nullptr;                // [n, out] errors as they enter W and Z
  T *Ady_ = nullptr, *fdy_ = nullptr;              // [n, out]
  T *P_ = nullptr, *X_ = nullptr, *dP_ = nullptr;  // [n, n]
};

}  // namespace weft
