// ttt_inner_layer_cpu.h for a thread block: one layer of the network that is the memory, over one inner batch of one
// head.
//
// n <= b tokens; x [n, in] with a last entry of 1, W [in, out], E, G and the suffixes as there.
#pragma once

#include "modules/families/block_products.cuh"

namespace weft {

// What the layers of a batch share.
struct TttScalesCuda {
  int n;
  bool first, complete;  // the call has the batch's first token, its last one
  const float* tok;      // [n]
  float* dtok;           // [n], added to
};

struct TttInnerLayerArrays {
  int in, out;  // in: with the constant
  int at;       // of its matrix in a memory
  int pending;  // numbers of a memory: G starts there
  BlockArray xk, xq, E, rE, R, S;
  BlockArray dxk, dxq, drE, D, dS;

  TttInnerLayerArrays() = default;
  TttInnerLayerArrays(std::int64_t b, std::int64_t inputs, std::int64_t outputs, std::int64_t offset,
                      std::int64_t memory, bool backward, BlockLayout& layout)
      : in(static_cast<int>(inputs) + 1),
        out(static_cast<int>(outputs)),
        at(static_cast<int>(offset)),
        pending(static_cast<int>(memory)) {
    for (BlockArray* x : {&xk, &xq}) *x = layout.take(b * in);
    for (BlockArray* x : {&E, &rE, &R}) *x = layout.take(b * out);
    S = layout.take(b * b);
    if (!backward) return;
    for (BlockArray* x : {&dxk, &dxq}) *x = layout.take(b * in);
    for (BlockArray* x : {&drE, &D}) *x = layout.take(b * out);
    dS = layout.take(b * b);
  }
};

class TttInnerLayerCuda {
 public:
  __device__ TttInnerLayerCuda(const TttInnerLayerArrays& arrays, const BlockMemory& memory) : a_(arrays), m_(memory) {}

  // y = xq W - tok (tril(xq xk^T) rE + xq G)
  __device__ __noinline__ void read(const TttScalesCuda& s, const float* state, float* y) const {
    const int n = s.n, in = a_.in, out = a_.out;
    const float *xq = m_[a_.xq], *xk = m_[a_.xk], *rE = m_[a_.rE];
    float *S = m_[a_.S], *R = m_[a_.R];
    block_product(n, n, in, 1.0F, view(xq, in), transposed(xk, in), 0.0F, S, n);
    clear_upper(n, S);
    block_product(n, out, n, 1.0F, view<float>(S, n), view(rE, out), 0.0F, R, out);
    if (!s.first) {
      block_product(n, out, in, 1.0F, view(xq, in), view(state + a_.pending + a_.at, out), 1.0F, R, out);
    }
    block_product(n, out, in, 1.0F, view(xq, in), view(state + a_.at, out), 0.0F, y, out);
    block_elements(n, out, [&](int i, int c) { y[i * out + c] -= s.tok[i] * R[i * out + c]; });
  }

  // G += xk^T rE; at the end of a batch W -= tok G and G = 0.
  __device__ __noinline__ void advance(const TttScalesCuda& s, float* state) const {
    const int in = a_.in, out = a_.out;
    float *W = state + a_.at, *G = state + a_.pending + a_.at;
    const float *xk = m_[a_.xk], *rE = m_[a_.rE];
    const float tok = s.tok[s.n - 1];
    if (s.first && s.complete) {
      return block_product(in, out, s.n, -tok, transposed(xk, in), view(rE, out), 1.0F, W, out);
    }
    block_product(in, out, s.n, 1.0F, transposed(xk, in), view(rE, out), s.first ? 0.0F : 1.0F, G, out);
    if (!s.complete) return;
    block_for(in * out, [&](int i) {
      W[i] -= tok * G[i];
      G[i] = 0.0F;
    });
  }

  // The adjoint of advance(), first of all: sets dxk and drE, and dW and dG become what they were before the batch.
  __device__ __noinline__ void advance_gradient(const TttScalesCuda& s, const float* state, float* dstate) const {
    const int n = s.n, in = a_.in, out = a_.out;
    float *dW = dstate + a_.at, *dG = dstate + a_.pending + a_.at;
    const float* dsum = s.complete ? dW : dG;
    const float factor = s.complete ? -s.tok[n - 1] : 1.0F;  // of G + xk^T rE, in what dsum belongs to
    const float *xk = m_[a_.xk], *rE = m_[a_.rE];
    float *drE = m_[a_.drE], *dxk = m_[a_.dxk];
    block_product(n, out, in, 1.0F, view(xk, in), view(dsum, out), 0.0F, drE, out);
    block_product(n, in, out, factor, view(rE, out), transposed(dsum, out), 0.0F, dxk, in);
    if (s.complete) {
      double sum = block_sum(n * out, [&](int i) { return rE[i] * drE[i]; });
      if (!s.first) {
        const float* G = state + a_.pending + a_.at;
        sum += block_sum(in * out, [&](int i) { return G[i] * dW[i]; });
      }
      if (threadIdx.x == 0) s.dtok[n - 1] -= static_cast<float>(sum);
      block_for(n * out, [&](int i) { drE[i] *= factor; });
    }
    if (s.first) {
      block_for(in * out, [&](int i) { dG[i] = 0.0F; });
    } else if (s.complete) {
      block_for(in * out, [&](int i) { dG[i] = factor * dW[i]; });
    }
  }

  // The adjoint of read(), after it: sets dxq, adds to dxk, drE, dtok, dW and dG.
  __device__ __noinline__ void read_gradient(const TttScalesCuda& s, const float* state, const float* dy,
                                             float* dstate) const {
    const int n = s.n, in = a_.in, out = a_.out;
    const float *xq = m_[a_.xq], *xk = m_[a_.xk], *rE = m_[a_.rE], *R = m_[a_.R], *S = m_[a_.S];
    float *D = m_[a_.D], *dS = m_[a_.dS], *dxq = m_[a_.dxq], *dxk = m_[a_.dxk], *drE = m_[a_.drE];
    block_rows(n, [&](int i, int lane) {
      const float along = warp_sum_of(out, lane, [&](int c) {
        D[i * out + c] = -s.tok[i] * dy[i * out + c];
        return dy[i * out + c] * R[i * out + c];
      });
      if (lane == 0) s.dtok[i] -= along;
    });
    block_product(in, out, n, 1.0F, transposed(xq, in), view(dy, out), 1.0F, dstate + a_.at, out);
    block_product(n, in, out, 1.0F, view(dy, out), transposed(state + a_.at, out), 0.0F, dxq, in);
    block_product(n, n, out, 1.0F, view<float>(D, out), transposed(rE, out), 0.0F, dS, n);
    clear_upper(n, dS);
    block_product(n, in, n, 1.0F, view<float>(dS, n), view(xk, in), 1.0F, dxq, in);
    block_product(n, in, n, 1.0F, transposed<float>(dS, n), view(xq, in), 1.0F, dxk, in);
    block_product(n, out, n, 1.0F, transposed(S, n), view<float>(D, out), 1.0F, drE, out);
    if (s.first) return;
    const int G = a_.pending + a_.at;
    block_product(n, in, out, 1.0F, view<float>(D, out), transposed(state + G, out), 1.0F, dxq, in);
    block_product(in, out, n, 1.0F, transposed(xq, in), view<float>(D, out), 1.0F, dstate + G, out);
  }

 private:
  __device__ static void clear_upper(int n, float* S) {
    block_elements(n, n, [&](int i, int j) {
      if (j > i) S[i * n + j] = 0.0F;
    });
  }

  const TttInnerLayerArrays& a_;
  const BlockMemory& m_;
};

}  // namespace weft
