// titans_chunk_cpu.h for a thread block: one chunk of one head of titans_memory.h, forward and backward.
//
// n <= C tokens; layers, their x and E as in titans_inner_layer.cuh. T: element type of the tokens' tensors.
#pragma once

#include "modules/families/gelu.cuh"
#include "modules/families/memory_span.h"
#include "modules/families/memory_walk.cuh"
#include "modules/families/titans_memory/titans_inner_layer.cuh"
#include "modules/families/titans_memory/titans_memory.h"

namespace weft {

struct TitansChunkArrays {
  TitansCoefficientArrays coefficients;
  TitansInnerLayerArrays hidden, last;
  BlockArray y, dy;                     // [n, d_v] what queries read
  BlockArray a, slope, back, aq, wide;  // [n, m] as in titans_chunk_cpu.h

  TitansChunkArrays() = default;
  TitansChunkArrays(const TitansProblem& p, bool backward, BlockLayout& layout) {
    const std::int64_t C = std::min(p.C, p.T), m = p.m, P = titans_memory_size(p.d_k, m, p.d_v);
    coefficients = TitansCoefficientArrays(C, backward, layout);
    hidden.out = 0;
    if (m > 0) hidden = TitansInnerLayerArrays(C, p.d_k, m, 0, P, backward, layout);
    last = TitansInnerLayerArrays(C, m > 0 ? m : p.d_k, p.d_v, p.d_k * m, P, backward, layout);
    y = layout.take(C * p.d_v);
    if (backward) dy = layout.take(C * p.d_v);
    for (BlockArray* x : {&a, &slope, &back, &aq}) *x = layout.take(C * m);
    if (backward) wide = layout.take(C * m);
  }
};

template <class T>
class TitansChunkCuda : public MemoryFromTensor<TitansChunkCuda<T>> {
 public:
  using Element = T;
  using Problem = TitansProblem;
  using Forward = TitansForward;
  using Backward = TitansBackward;
  using Arrays = TitansChunkArrays;

  static std::int64_t state_floats(const TitansProblem& p) { return 3 * titans_memory_size(p.d_k, p.m, p.d_v); }
  static std::int64_t kept_floats(const TitansProblem& p) { return 2 * titans_memory_size(p.d_k, p.m, p.d_v); }
  static std::int64_t line_floats(const TitansProblem& p) { return titans_memory_size(p.d_k, p.m, p.d_v); }
  static Arrays arrays(const TitansProblem& p, bool backward, BlockLayout& layout) { return {p, backward, layout}; }

  __device__ TitansChunkCuda(const TitansProblem& p, const Arrays& arrays, const BlockMemory& memory)
      : p_(p),
        a_(arrays),
        m_(memory),
        P_(arrays.last.part),
        d_k_(arrays.hidden.out > 0 ? arrays.hidden.in : arrays.last.in),
        d_v_(arrays.last.out),
        hidden_(arrays.hidden.out) {}

  __device__ const TitansProblem& problem() const { return p_; }
  __device__ int size() const { return 3 * P_; }
  __device__ void start(std::int64_t h, float* state) const {
    const int first = d_k_ * hidden_;  // numbers of the hidden layer
    const T *w1 = static_cast<const T*>(p_.w1) + h * first, *w2 = static_cast<const T*>(p_.w2) + h * (P_ - first);
    block_for(P_, [&](int i) {
      state[i] = to_float(i < first ? w1[i] : w2[i - first]);
      state[P_ + i] = state[2 * P_ + i] = 0.0F;
    });
  }
  // Wc is not read before the chunk sets it.
  __device__ void between_chunks(float*) const {}
  __device__ void start_gradient(const float* dstate, float* line) const {
    block_for(P_, [&](int i) { line[i] += dstate[i]; });
  }

  __device__ __noinline__ void forward(const MemorySpan& s, float* state, T* out) const {
    const TitansCoefficientsCuda co = load(s, out != nullptr);
    train(co.n, weights(s, state));
    if (out != nullptr) {
      read(co, state);
      const float* y = m_[a_.y];
      block_elements(co.n, d_v_, [&](int t, int c) { out[token(s, t) * d_v_ + c] = from_float<T>(y[t * d_v_ + c]); });
    }
    float* Wc = state + 2 * P_;
    if (s.phase == 0 && !s.complete) block_for(P_, [&](int i) { Wc[i] = state[i]; });
    if (hidden_ > 0) TitansInnerLayerCuda(a_.hidden, m_).advance(co, state);
    TitansInnerLayerCuda(a_.last, m_).advance(co, state);
    if (s.complete) block_for(P_, [&](int i) { Wc[i] = state[i]; });
  }

  __device__ void backward(const TitansBackward& g, const MemorySpan& s, const float* state, float* dstate,
                           float*) const {
    const TitansCoefficientsCuda co = load(s, true);
    train(co.n, weights(s, state));
    read(co, state);
    if (s.complete) fold(dstate);  // the next chunk trains at W
    co.clear_gradients();
    if (hidden_ > 0) TitansInnerLayerCuda(a_.hidden, m_).advance_gradient(co, state, dstate);
    TitansInnerLayerCuda(a_.last, m_).advance_gradient(co, state, dstate);
    read_gradient(g, s, co, state, dstate);
    train_gradient(co.n, weights(s, state), dstate + 2 * P_);
    if (s.phase == 0) fold(dstate);  // this one does
    co.finish_gradients();
    store_gradients(g, s, co);
  }

 private:
  __device__ const TitansInnerLayerArrays& first() const { return hidden_ > 0 ? a_.hidden : a_.last; }
  __device__ std::int64_t token(const MemorySpan& s, int t) const { return (s.begin + t) * p_.H + s.head; }
  // The weights at which gradients are taken.
  __device__ const float* weights(const MemorySpan& s, const float* state) const {
    return s.phase == 0 ? state : state + 2 * P_;
  }
  // dW += dWc, dWc = 0
  __device__ void fold(float* dstate) const {
    block_for(P_, [&](int i) {
      dstate[i] += dstate[2 * P_ + i];
      dstate[2 * P_ + i] = 0.0F;
    });
  }

  __device__ __noinline__ TitansCoefficientsCuda load(const MemorySpan& s, bool queries) const {
    const TitansCoefficientsCuda co(static_cast<int>(s.n), a_.coefficients, m_);
    const auto *q = static_cast<const T*>(p_.q), *k = static_cast<const T*>(p_.k), *v = static_cast<const T*>(p_.v);
    const auto *keep = static_cast<const float*>(p_.keep), *mu = static_cast<const float*>(p_.momentum),
               *rate = static_cast<const float*>(p_.rate);
    float *xk = m_[first().xk], *xq = m_[first().xq], *E = m_[a_.last.E];
    block_rows(co.n, [&](int i, int lane) {
      const std::int64_t t = token(s, i);
      for (int c = lane; c < d_k_; c += 32) {
        xk[i * d_k_ + c] = to_float(k[t * d_k_ + c]);
        if (queries) xq[i * d_k_ + c] = to_float(q[t * d_k_ + c]);
      }
      for (int c = lane; c < d_v_; c += 32) E[i * d_v_ + c] = to_float(v[t * d_v_ + c]);  // train() subtracts it
      if (lane != 0) return;
      co.keep[i] = keep[t];
      co.mu[i] = mu[t];
      co.rate[i] = rate[t];
    });
    co.compute();
    return co;
  }

  // The inner forward and backward pass of the keys: E of every layer.
  __device__ __noinline__ void train(int n, const float* W) const {
    const int m = hidden_, d_v = d_v_, at = a_.last.at, in = a_.last.in;
    float *xk = m_[a_.last.xk], *E = m_[a_.last.E], *a = m_[a_.a];
    if (m > 0) {
      block_product(n, m, d_k_, 1.0F, view<float>(m_[a_.hidden.xk], d_k_), view(W, m), 0.0F, a, m);
      block_for(n * m, [&](int i) { xk[i] = GeluCuda(a[i]).value(); });
    }
    block_product(n, d_v, in, 1.0F, view<float>(xk, in), view(W + at, d_v), -1.0F, E, d_v);
    if (m == 0) return;
    float *back = m_[a_.back], *slope = m_[a_.slope], *hidden_E = m_[a_.hidden.E];
    block_product(n, m, d_v, 1.0F, view<float>(E, d_v), transposed(W + at, d_v), 0.0F, back, m);
    block_for(n * m, [&](int i) {
      slope[i] = GeluCuda(a[i]).slope();
      hidden_E[i] = back[i] * slope[i];
    });
  }

  // Every query through the weights of its own token.
  __device__ void read(const TitansCoefficientsCuda& co, const float* state) const {
    if (hidden_ > 0) {
      float *aq = m_[a_.aq], *xq = m_[a_.last.xq];
      TitansInnerLayerCuda(a_.hidden, m_).read(co, state, aq);
      block_for(co.n * hidden_, [&](int i) { xq[i] = GeluCuda(aq[i]).value(); });
    }
    TitansInnerLayerCuda(a_.last, m_).read(co, state, m_[a_.y]);
  }

  __device__ void read_gradient(const TitansBackward& g, const MemorySpan& s, const TitansCoefficientsCuda& co,
                                const float* state, float* dstate) const {
    const auto* d_o = static_cast<const T*>(g.d_o);
    float* dy = m_[a_.dy];
    block_elements(co.n, d_v_, [&](int t, int c) { dy[t * d_v_ + c] = to_float(d_o[token(s, t) * d_v_ + c]); });
    TitansInnerLayerCuda(a_.last, m_).read_gradient(co, state, dy, dstate);
    if (hidden_ == 0) return;
    float *wide = m_[a_.wide], *dxq = m_[a_.last.dxq], *aq = m_[a_.aq];
    block_for(co.n * hidden_, [&](int i) { wide[i] = dxq[i] * GeluCuda(aq[i]).slope(); });
    TitansInnerLayerCuda(a_.hidden, m_).read_gradient(co, state, wide, dstate);
  }

  // The adjoint of train(): from dE and dxk to dxk of the keys and dWc; dE of the last layer becomes -dv.
  __device__ __noinline__ void train_gradient(int n, const float* W, float* dWc) const {
    const int m = hidden_, d_v = d_v_, in = a_.last.in, at = a_.last.at;
    float *E = m_[a_.last.E], *dE = m_[a_.last.dE], *xk = m_[a_.last.xk], *dxk = m_[a_.last.dxk];
    float *wide = m_[a_.wide], *slope = m_[a_.slope];
    if (m > 0) {
      float *hidden_dE = m_[a_.hidden.dE], *back = m_[a_.back], *a = m_[a_.a];
      block_for(n * m, [&](int i) {
        wide[i] = hidden_dE[i] * back[i] * GeluCuda(a[i]).curvature();  // of a
        hidden_dE[i] *= slope[i];                                       // of E W2^T
      });
      block_product(n, d_v, m, 1.0F, view<float>(hidden_dE, m), view(W + at, d_v), 1.0F, dE, d_v);
      block_product(m, d_v, n, 1.0F, transposed<float>(hidden_dE, m), view<float>(E, d_v), 1.0F, dWc + at, d_v);
    }
    block_product(n, in, d_v, 1.0F, view<float>(dE, d_v), transposed(W + at, d_v), 1.0F, dxk, in);
    block_product(in, d_v, n, 1.0F, transposed<float>(xk, in), view<float>(dE, d_v), 1.0F, dWc + at, d_v);
    if (m == 0) return;
    block_for(n * m, [&](int i) { wide[i] += dxk[i] * slope[i]; });
    float *k = m_[a_.hidden.xk], *dk = m_[a_.hidden.dxk];
    block_product(n, d_k_, m, 1.0F, view<float>(wide, m), transposed(W, m), 1.0F, dk, d_k_);
    block_product(d_k_, m, n, 1.0F, transposed<float>(k, d_k_), view<float>(wide, m), 1.0F, dWc, m);
  }

  __device__ void store_gradients(const TitansBackward& g, const MemorySpan& s,
                                  const TitansCoefficientsCuda& co) const {
    auto *dq = static_cast<T*>(g.dq), *dk = static_cast<T*>(g.dk), *dv = static_cast<T*>(g.dv);
    auto *dkeep = static_cast<float*>(g.dkeep), *dmu = static_cast<float*>(g.dmomentum),
         *drate = static_cast<float*>(g.drate);
    const float *dxq = m_[first().dxq], *dxk = m_[first().dxk], *dE = m_[a_.last.dE];
    block_rows(co.n, [&](int i, int lane) {
      const std::int64_t t = token(s, i);
      for (int c = lane; c < d_k_; c += 32) {
        if (dq != nullptr) store_value(dq[t * d_k_ + c], dxq[i * d_k_ + c], g.write_dq);
        if (dk != nullptr) store_value(dk[t * d_k_ + c], dxk[i * d_k_ + c], g.write_dk);
      }
      for (int c = lane; c < d_v_ && dv != nullptr; c += 32) {
        store_value(dv[t * d_v_ + c], -dE[i * d_v_ + c], g.write_dv);
      }
      if (lane != 0) return;
      if (dkeep != nullptr) store_value(dkeep[t], co.dkeep[i], g.write_dkeep);
      if (dmu != nullptr) store_value(dmu[t], co.dmu[i], g.write_dmomentum);
      if (drate != nullptr) store_value(drate[t], co.drate[i], g.write_drate);
    });
  }

  const TitansProblem& p_;
  const TitansChunkArrays& a_;
  const BlockMemory& m_;
  int P_, d_k_, d_v_, hidden_;
};

}  // namespace weft
