// titans_inner_layer_cpu.h for a thread block: one layer of the network that is the memory, over one chunk of one head.
//
// n <= C tokens; x [n, in], W [in, out], E, Z, the suffixes and the parts of a state as there.
#pragma once

#include "modules/families/titans_memory/titans_coefficients.cuh"

namespace weft {

struct TitansInnerLayerArrays {
  int in, out;
  int at;    // of its matrix in a part
  int part;  // numbers of a part
  BlockArray xk, xq, E, xw, xz, cE, mE, P, X;
  BlockArray dxk, dxq, dE, Ady, fdy, dP;

  TitansInnerLayerArrays() = default;
  TitansInnerLayerArrays(std::int64_t C, std::int64_t inputs, std::int64_t outputs, std::int64_t offset,
                         std::int64_t numbers, bool backward, BlockLayout& layout)
      : in(static_cast<int>(inputs)),
        out(static_cast<int>(outputs)),
        at(static_cast<int>(offset)),
        part(static_cast<int>(numbers)) {
    for (BlockArray* x : {&xk, &xq}) *x = layout.take(C * in);
    for (BlockArray* x : {&E, &xw, &xz, &cE, &mE}) *x = layout.take(C * out);
    for (BlockArray* x : {&P, &X}) *x = layout.take(C * C);
    if (!backward) return;
    for (BlockArray* x : {&dxk, &dxq}) *x = layout.take(C * in);
    for (BlockArray* x : {&dE, &Ady, &fdy}) *x = layout.take(C * out);
    dP = layout.take(C * C);
  }
};

class TitansInnerLayerCuda {
 public:
  __device__ TitansInnerLayerCuda(const TitansInnerLayerArrays& arrays, const BlockMemory& memory)
      : a_(arrays), m_(memory) {}

  // y = A (xq W) + f (xq Z) - X E,  X = tril(xq xk^T) * c rate
  __device__ __noinline__ void read(const TitansCoefficientsCuda& s, const float* state, float* y) const {
    const int n = s.n, in = a_.in, out = a_.out;
    const float *xq = m_[a_.xq], *xk = m_[a_.xk], *E = m_[a_.E];
    float *P = m_[a_.P], *X = m_[a_.X], *xw = m_[a_.xw], *xz = m_[a_.xz];
    block_product(n, n, in, 1.0F, view(xq, in), transposed(xk, in), 0.0F, P, n);
    block_elements(n, n,
                   [&](int t, int j) { X[t * n + j] = j <= t ? P[t * n + j] * s.c[t * n + j] * s.rate[j] : 0.0F; });
    block_product(n, out, in, 1.0F, view(xq, in), view(state + a_.at, out), 0.0F, xw, out);
    block_product(n, out, in, 1.0F, view(xq, in), view(state + a_.part + a_.at, out), 0.0F, xz, out);
    block_elements(n, out, [&](int t, int c) {
      const int i = t * out + c;
      y[i] = s.A[t] * xw[i] + s.f[t] * xz[i];
    });
    block_product(n, out, n, -1.0F, view<float>(X, n), view(E, out), 1.0F, y, out);
  }

  // W' = A_n W + f_n Z - xk^T (rate c_n E),  Z' = B_n Z - xk^T (rate M_n E)
  __device__ __noinline__ void advance(const TitansCoefficientsCuda& s, float* state) const {
    const int in = a_.in, out = a_.out;
    float *W = state + a_.at, *Z = state + a_.part + a_.at;
    weigh(s);
    const float A = s.A[s.n - 1], B = s.B[s.n - 1], f = s.f[s.n - 1];
    block_for(in * out, [&](int i) {
      W[i] = A * W[i] + f * Z[i];
      Z[i] *= B;
    });
    const float *xk = m_[a_.xk], *cE = m_[a_.cE], *mE = m_[a_.mE];
    block_product(in, out, s.n, -1.0F, transposed(xk, in), view(cE, out), 1.0F, W, out);
    block_product(in, out, s.n, -1.0F, transposed(xk, in), view(mE, out), 1.0F, Z, out);
  }

  // The adjoint of advance(), first of all: sets dxk and dE, and dW and dZ become what they were before the chunk.
  __device__ __noinline__ void advance_gradient(const TitansCoefficientsCuda& s, const float* state,
                                                float* dstate) const {
    const int n = s.n, last = n - 1, in = a_.in, out = a_.out;
    const float *W = state + a_.at, *Z = state + a_.part + a_.at, *xk = m_[a_.xk], *E = m_[a_.E];
    float *dW = dstate + a_.at, *dZ = dstate + a_.part + a_.at;
    float *cE = m_[a_.cE], *mE = m_[a_.mE], *dxk = m_[a_.dxk], *dE = m_[a_.dE];
    weigh(s);
    block_product(n, in, out, -1.0F, view<float>(cE, out), transposed<float>(dW, out), 0.0F, dxk, in);
    block_product(n, in, out, -1.0F, view<float>(mE, out), transposed<float>(dZ, out), 1.0F, dxk, in);
    block_product(n, out, in, -1.0F, view(xk, in), view<float>(dW, out), 0.0F, cE, out);  // now gradients
    block_product(n, out, in, -1.0F, view(xk, in), view<float>(dZ, out), 0.0F, mE, out);
    block_rows(n, [&](int j, int lane) {
      const int row = j * out;
      const float c = s.c[last * n + j], M = s.M[last * n + j], rate = s.rate[j];
      const float to_c = warp_sum_of(out, lane, [&](int i) { return cE[row + i] * E[row + i]; });
      const float to_M = warp_sum_of(out, lane, [&](int i) { return mE[row + i] * E[row + i]; });
      for (int i = row + lane; i < row + out; i += 32) dE[i] = rate * (c * cE[i] + M * mE[i]);
      if (lane != 0) return;
      s.dc[last * n + j] += rate * to_c;
      s.dM[last * n + j] += rate * to_M;
      s.drate[j] += c * to_c + M * to_M;
    });
    const double to_A = block_sum(in * out, [&](int i) { return dW[i] * W[i]; });
    const double to_f = block_sum(in * out, [&](int i) { return dW[i] * Z[i]; });
    const double to_B = block_sum(in * out, [&](int i) { return dZ[i] * Z[i]; });
    if (block_thread() == 0) {
      s.dA[last] += static_cast<float>(to_A);
      s.df[last] += static_cast<float>(to_f);
      s.dB[last] += static_cast<float>(to_B);
    }
    const float A = s.A[last], B = s.B[last], f = s.f[last];
    block_for(in * out, [&](int i) {
      dZ[i] = f * dW[i] + B * dZ[i];
      dW[i] *= A;
    });
  }

  // The adjoint of read(), after it: sets dxq; adds to dxk, dE, dW, dZ and the gradients of coefficients and rates.
  __device__ __noinline__ void read_gradient(const TitansCoefficientsCuda& s, const float* state, const float* dy,
                                             float* dstate) const {
    const int n = s.n, in = a_.in, out = a_.out;
    const float *xq = m_[a_.xq], *xk = m_[a_.xk], *E = m_[a_.E], *P = m_[a_.P], *X = m_[a_.X], *xw = m_[a_.xw],
                *xz = m_[a_.xz];
    float *Ady = m_[a_.Ady], *fdy = m_[a_.fdy], *dE = m_[a_.dE], *dP = m_[a_.dP], *dxq = m_[a_.dxq], *dxk = m_[a_.dxk];
    block_rows(n, [&](int t, int lane) {
      const int row = t * out;
      const float to_A = warp_sum_of(out, lane, [&](int i) { return dy[row + i] * xw[row + i]; });
      const float to_f = warp_sum_of(out, lane, [&](int i) { return dy[row + i] * xz[row + i]; });
      for (int i = row + lane; i < row + out; i += 32) {
        Ady[i] = s.A[t] * dy[i];
        fdy[i] = s.f[t] * dy[i];
      }
      if (lane != 0) return;
      s.dA[t] += to_A;
      s.df[t] += to_f;
    });
    block_product(n, out, n, -1.0F, transposed(X, n), view(dy, out), 1.0F, dE, out);
    block_product(n, n, out, -1.0F, view(dy, out), transposed(E, out), 0.0F, dP, n);  // of X at first
    block_for(n, [&](int j) {  // a thread for each column: drate sums over them
      float to_rate = 0.0F;
      for (int t = 0; t < j; ++t) dP[t * n + j] = 0.0F;
      for (int t = j; t < n; ++t) {
        const int i = t * n + j;
        const float through = dP[i] * P[i];
        s.dc[i] += through * s.rate[j];
        to_rate += through * s.c[i];
        dP[i] *= s.c[i] * s.rate[j];
      }
      s.drate[j] += to_rate;
    });
    block_product(n, in, n, 1.0F, view<float>(dP, n), view(xk, in), 0.0F, dxq, in);
    block_product(n, in, out, 1.0F, view<float>(Ady, out), transposed(state + a_.at, out), 1.0F, dxq, in);
    block_product(n, in, out, 1.0F, view<float>(fdy, out), transposed(state + a_.part + a_.at, out), 1.0F, dxq, in);
    block_product(n, in, n, 1.0F, transposed<float>(dP, n), view(xq, in), 1.0F, dxk, in);
    block_product(in, out, n, 1.0F, transposed(xq, in), view<float>(Ady, out), 1.0F, dstate + a_.at, out);
    block_product(in, out, n, 1.0F, transposed(xq, in), view<float>(fdy, out), 1.0F, dstate + a_.part + a_.at, out);
  }

 private:
  // Rows rate_j c_nj E_j and rate_j M_nj E_j.
  __device__ void weigh(const TitansCoefficientsCuda& s) const {
    const float *c = s.c + (s.n - 1) * s.n, *M = s.M + (s.n - 1) * s.n, *E = m_[a_.E];
    float *cE = m_[a_.cE], *mE = m_[a_.mE];
    const int out = a_.out;
    block_elements(s.n, out, [&](int j, int x) {
      const float e = s.rate[j] * E[j * out + x];
      cE[j * out + x] = c[j] * e;
      mE[j * out + x] = M[j] * e;
    });
  }

  const TitansInnerLayerArrays& a_;
  const BlockMemory& m_;
};

}  // namespace weft
