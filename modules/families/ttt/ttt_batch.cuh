// ttt_batch_cpu.h for a thread block: one inner batch of one head of ttt_memory.h, forward and backward.
//
// n <= b tokens; layers, their x, E and G as in ttt_inner_layer.cuh. T: element type of the tokens' tensors.
#pragma once

#include "modules/families/gelu.cuh"
#include "modules/families/memory_span.h"
#include "modules/families/memory_walk.cuh"
#include "modules/families/ttt/ttt_inner_layer.cuh"
#include "modules/families/ttt/ttt_memory.h"

namespace weft {

struct TttBatchArrays {
  TttInnerLayerArrays hidden, last;
  BlockArray rstd, rstd_q, mixed, rate, tok, dtok, drate;  // [n]; mixed: mean(gz zhat)
  BlockArray z, zq, residual, gz, dz, dgz;                 // [n, d] as in ttt_batch_cpu.h
  BlockArray a, slope, back, aq, wide;                     // [n, m]

  TttBatchArrays() = default;
  TttBatchArrays(const TttProblem& p, bool backward, BlockLayout& layout) {
    const std::int64_t n = p.C, d = p.d, m = p.m, P = ttt_memory_size(d, m);
    for (BlockArray* x : {&rstd, &rstd_q, &mixed, &rate, &tok, &dtok, &drate}) *x = layout.take(n);
    hidden.out = 0;
    if (m > 0) hidden = TttInnerLayerArrays(n, d, m, 0, P, backward, layout);
    last = TttInnerLayerArrays(n, m > 0 ? m : d, d, m > 0 ? (d + 1) * m : 0, P, backward, layout);
    for (BlockArray* x : {&z, &zq, &residual, &gz}) *x = layout.take(n * d);
    for (BlockArray* x : {&dz, &dgz}) *x = backward ? layout.take(n * d) : BlockArray{};
    for (BlockArray* x : {&a, &slope, &back, &aq}) *x = layout.take(n * m);
    if (backward) wide = layout.take(n * m);
  }
};

template <class T>
class TttBatchCuda : public MemoryFromTensor<TttBatchCuda<T>> {
 public:
  using Element = T;
  using Problem = TttProblem;
  using Forward = TttForward;
  using Backward = TttBackward;
  using Arrays = TttBatchArrays;

  static std::int64_t state_floats(const TttProblem& p) { return 2 * ttt_memory_size(p.d, p.m); }
  static std::int64_t kept_floats(const TttProblem& p) { return ttt_memory_size(p.d, p.m); }
  // Gradients of the initial memory, of gamma and beta, and of the offsets.
  static std::int64_t line_floats(const TttProblem& p) { return ttt_memory_size(p.d, p.m) + 2 * p.d + p.C; }
  static Arrays arrays(const TttProblem& p, bool backward, BlockLayout& layout) { return {p, backward, layout}; }

  __device__ TttBatchCuda(const TttProblem& p, const Arrays& arrays, const BlockMemory& memory)
      : p_(p), a_(arrays), m_(memory), P_(arrays.last.pending), d_(arrays.last.out), hidden_(arrays.hidden.out) {}

  __device__ const TttProblem& problem() const { return p_; }
  __device__ int size() const { return 2 * P_; }
  __device__ void start(std::int64_t h, float* state) const {
    const int d = d_, m = hidden_, in = a_.last.in - 1, at = a_.last.at;
    if (m > 0) {
      copy_head(p_.w1, h, d * m, state);
      copy_head(p_.b1, h, m, state + d * m);
    }
    copy_head(p_.w2, h, in * d, state + at);
    copy_head(p_.b2, h, d, state + at + in * d);
    between_chunks(state);
  }
  __device__ void between_chunks(float* state) const {
    block_for(P_, [&](int i) { state[P_ + i] = 0.0F; });
  }
  __device__ void start_gradient(const float* dstate, float* line) const {
    block_for(P_, [&](int i) { line[i] += dstate[i]; });
  }

  __device__ __noinline__ void forward(const MemorySpan& s, float* state, T* out) const {
    load(s, out != nullptr);
    train(s, state);
    if (out != nullptr) {
      read(s, state);
      const int d = d_;
      const float *gamma = head(p_.gamma, s.head, d), *beta = head(p_.beta, s.head, d);
      const float *q = m_[first().xq], *zq = m_[a_.zq];
      block_elements(rows(s), d, [&](int i, int c) {
        out[token(s, i) * d + c] = from_float<T>(q[i * (d + 1) + c] + gamma[c] * zq[i * d + c] + beta[c]);
      });
    }
    if (hidden_ > 0) TttInnerLayerCuda(a_.hidden, m_).advance(scales(s), state);
    TttInnerLayerCuda(a_.last, m_).advance(scales(s), state);
  }

  __device__ void backward(const TttBackward& g, const MemorySpan& s, const float* state, float* dstate,
                           float* line) const {
    load(s, true);
    train(s, state);
    read(s, state);
    float* dtok = m_[a_.dtok];
    block_for(rows(s), [&](int i) { dtok[i] = 0.0F; });
    if (hidden_ > 0) TttInnerLayerCuda(a_.hidden, m_).advance_gradient(scales(s), state, dstate);
    TttInnerLayerCuda(a_.last, m_).advance_gradient(scales(s), state, dstate);
    read_gradient(g, s, state, dstate, line);
    train_gradient(s, state, dstate, line);
    store_gradients(g, s, line);
  }

 private:
  __device__ static int rows(const MemorySpan& s) { return static_cast<int>(s.n); }
  __device__ const TttInnerLayerArrays& first() const { return hidden_ > 0 ? a_.hidden : a_.last; }
  __device__ TttScalesCuda scales(const MemorySpan& s) const {
    return {rows(s), s.phase == 0, s.complete, m_[a_.tok], m_[a_.dtok]};
  }
  __device__ std::int64_t token(const MemorySpan& s, int i) const { return (s.begin + i) * p_.H + s.head; }
  __device__ static const float* head(const void* x, std::int64_t h, int width) {
    return static_cast<const float*>(x) + h * width;
  }
  __device__ static void copy_head(const void* from, std::int64_t h, int elements, float* to) {
    const T* x = static_cast<const T*>(from) + h * elements;
    block_for(elements, [&](int i) { to[i] = to_float(x[i]); });
  }

  __device__ __noinline__ void load(const MemorySpan& s, bool queries) const {
    const int d = d_;
    const auto *q = static_cast<const T*>(p_.q), *k = static_cast<const T*>(p_.k), *v = static_cast<const T*>(p_.v);
    const auto* rates = static_cast<const float*>(p_.rate);
    float *xk = m_[first().xk], *xq = m_[first().xq], *residual = m_[a_.residual], *rate = m_[a_.rate],
          *tok = m_[a_.tok];
    block_rows(rows(s), [&](int i, int lane) {
      const std::int64_t t = token(s, i);
      const int row = i * (d + 1);
      for (int c = lane; c < d; c += 32) {
        const float key = to_float(k[t * d + c]);
        xk[row + c] = key;
        residual[i * d + c] = to_float(v[t * d + c]) - key;
        if (queries) xq[row + c] = to_float(q[t * d + c]);
      }
      if (lane != 0) return;
      xk[row + d] = xq[row + d] = 1.0F;
      rate[i] = rates[t];
      const float scale = raw_scale(s.phase + i);
      tok[i] = scale > 0.0F ? scale : 0.0F;
    });
  }
  // 1/(t+1) + offset_t, before it is cut at 0.
  __device__ float raw_scale(std::int64_t t) const {
    return 1.0F / static_cast<float>(t + 1) + static_cast<const float*>(p_.offset)[t];
  }

  // Rows of z [n, d] become those of LN without gamma and beta.
  __device__ void normalise(int n, float* z, float* rstd) const {
    const int d = d_;
    block_rows(n, [&](int i, int lane) {
      float* row = z + i * d;
      const float mean = warp_sum_of(d, lane, [&](int c) { return row[c]; }) / static_cast<float>(d);
      const float squares = warp_sum_of(d, lane, [&](int c) { return (row[c] - mean) * (row[c] - mean); });
      const float r = 1.0F / sqrtf(squares / static_cast<float>(d) + static_cast<float>(kTttNormEps));
      if (lane == 0) rstd[i] = r;
      for (int c = lane; c < d; c += 32) row[c] = (row[c] - mean) * r;
    });
  }
  // Means over a row of g and of g zhat.
  struct Moments {
    float mean, along;
  };
  __device__ Moments moments(const float* g, const float* zhat, int lane) const {
    const int d = d_;
    const float sum = warp_sum_of(d, lane, [&](int c) { return g[c]; });
    const float along = warp_sum_of(d, lane, [&](int c) { return g[c] * zhat[c]; });
    return {sum / static_cast<float>(d), along / static_cast<float>(d)};
  }

  // The inner forward and backward pass of the keys at the weights of the batch's start: E of every layer.
  __device__ __noinline__ void train(const MemorySpan& s, const float* state) const {
    const int n = rows(s), d = d_, m = hidden_, in = a_.last.in;
    float* xk = m_[a_.last.xk];
    if (m > 0) {
      float *a = m_[a_.a], *slope = m_[a_.slope];
      block_product(n, m, d + 1, 1.0F, view<float>(m_[a_.hidden.xk], d + 1), view(state, m), 0.0F, a, m);
      block_rows(n, [&](int i, int lane) {
        for (int c = lane; c < m; c += 32) {
          const GeluCuda gelu(a[i * m + c]);
          xk[i * in + c] = gelu.value();
          slope[i * m + c] = gelu.slope();
        }
        if (lane == 0) xk[i * in + m] = 1.0F;
      });
    }
    const float *W = state + a_.last.at, *rate = m_[a_.rate];
    float *z = m_[a_.z], *rstd = m_[a_.rstd], *mixed = m_[a_.mixed];
    block_product(n, d, in, 1.0F, view<float>(xk, in), view(W, d), 0.0F, z, d);
    normalise(n, z, rstd);
    const float *gamma = head(p_.gamma, s.head, d), *beta = head(p_.beta, s.head, d);
    const float* residuals = m_[a_.residual];
    float *all_gz = m_[a_.gz], *all_E = m_[a_.last.E], *all_rE = m_[a_.last.rE];
    block_rows(n, [&](int i, int lane) {
      const float *zhat = z + i * d, *residual = residuals + i * d;
      float *gz = all_gz + i * d, *E = all_E + i * d, *rE = all_rE + i * d;
      for (int c = lane; c < d; c += 32) gz[c] = gamma[c] * (gamma[c] * zhat[c] + beta[c] - residual[c]);
      const auto [mean, along] = moments(gz, zhat, lane);
      if (lane == 0) mixed[i] = along;
      for (int c = lane; c < d; c += 32) {
        E[c] = (gz[c] - mean - zhat[c] * along) * rstd[i];
        rE[c] = rate[i] * E[c];
      }
    });
    if (m == 0) return;
    float *back = m_[a_.back], *slope = m_[a_.slope], *E = m_[a_.hidden.E], *rE = m_[a_.hidden.rE];
    block_product(n, m, d, 1.0F, view<float>(all_E, d), transposed(W, d), 0.0F, back, m);
    block_elements(n, m, [&](int i, int c) {
      const float e = back[i * m + c] * slope[i * m + c];
      E[i * m + c] = e;
      rE[i * m + c] = rate[i] * e;
    });
  }

  // Every query through the weights of its own token.
  __device__ __noinline__ void read(const MemorySpan& s, const float* state) const {
    const int m = hidden_;
    if (m > 0) {
      float *aq = m_[a_.aq], *xq = m_[a_.last.xq];
      TttInnerLayerCuda(a_.hidden, m_).read(scales(s), state, aq);
      block_rows(rows(s), [&](int i, int lane) {
        for (int c = lane; c < m; c += 32) xq[i * (m + 1) + c] = GeluCuda(aq[i * m + c]).value();
        if (lane == 0) xq[i * (m + 1) + m] = 1.0F;
      });
    }
    TttInnerLayerCuda(a_.last, m_).read(scales(s), state, m_[a_.zq]);
    normalise(rows(s), m_[a_.zq], m_[a_.rstd_q]);
  }

  __device__ __noinline__ void read_gradient(const TttBackward& g, const MemorySpan& s, const float* state,
                                             float* dstate, float* line) const {
    const int n = rows(s), d = d_, m = hidden_;
    const float* gamma = head(p_.gamma, s.head, d);
    const auto* douts = static_cast<const T*>(g.d_o);
    float *zq = m_[a_.zq], *dz = m_[a_.dz], *rstd = m_[a_.rstd_q];
    block_for(d, [&](int c) {
      float to_gamma = 0.0F, to_beta = 0.0F;
      for (int i = 0; i < n; ++i) {
        const float d_o = to_float(douts[token(s, i) * d + c]);
        to_gamma += d_o * zq[i * d + c];
        to_beta += d_o;
      }
      line[P_ + c] += to_gamma;
      line[P_ + d + c] += to_beta;
    });
    block_rows(n, [&](int i, int lane) {
      const T* d_o = douts + token(s, i) * d;
      const float* zhat = zq + i * d;
      float* row = dz + i * d;
      for (int c = lane; c < d; c += 32) row[c] = gamma[c] * to_float(d_o[c]);
      const auto [mean, along] = moments(row, zhat, lane);
      for (int c = lane; c < d; c += 32) row[c] = (row[c] - mean - zhat[c] * along) * rstd[i];
    });
    TttInnerLayerCuda(a_.last, m_).read_gradient(scales(s), state, dz, dstate);
    if (m == 0) return;
    float *wide = m_[a_.wide], *dxq = m_[a_.last.dxq], *aq = m_[a_.aq];
    block_elements(n, m,
                   [&](int i, int c) { wide[i * m + c] = dxq[i * (m + 1) + c] * GeluCuda(aq[i * m + c]).slope(); });
    TttInnerLayerCuda(a_.hidden, m_).read_gradient(scales(s), state, wide, dstate);
  }

  // The adjoint of train(): from drE and dxk to dxk of the keys, dW, and what reaches v - k (in gz).
  __device__ __noinline__ void train_gradient(const MemorySpan& s, const float* state, float* dstate,
                                              float* line) const {
    const int n = rows(s), d = d_, m = hidden_, in = a_.last.in;
    const float *W = state + a_.last.at, *rate = m_[a_.rate];
    float* dW = dstate + a_.last.at;
    float *E = m_[a_.last.E], *dE = m_[a_.last.drE], *drate = m_[a_.drate];
    rates_gradient(n, d, rate, E, dE, drate, false);
    float* wide = m_[a_.wide];
    if (m > 0) {
      float *hidden_dE = m_[a_.hidden.drE], *back = m_[a_.back], *a = m_[a_.a], *slope = m_[a_.slope];
      rates_gradient(n, m, rate, m_[a_.hidden.E], hidden_dE, drate, true);
      block_for(n * m, [&](int i) {
        const float to = hidden_dE[i];
        hidden_dE[i] = to * slope[i];                         // of E W2^T
        wide[i] = to * back[i] * GeluCuda(a[i]).curvature();  // of a
      });
      block_product(n, d, m, 1.0F, view<float>(hidden_dE, m), view(W, d), 1.0F, dE, d);
      block_product(m, d, n, 1.0F, transposed<float>(hidden_dE, m), view<float>(E, d), 1.0F, dW, d);
    }
    inner_gradient_gradient(s, line);
    float *dz = m_[a_.dz], *dxk = m_[a_.last.dxk];
    block_product(in, d, n, 1.0F, transposed<float>(m_[a_.last.xk], in), view<float>(dz, d), 1.0F, dW, d);
    block_product(n, in, d, 1.0F, view<float>(dz, d), transposed(W, d), 1.0F, dxk, in);
    if (m == 0) return;
    const float *slope = m_[a_.slope], *k = m_[a_.hidden.xk];
    block_elements(n, m, [&](int i, int c) { wide[i * m + c] += dxk[i * in + c] * slope[i * m + c]; });
    block_product(d + 1, m, n, 1.0F, transposed(k, d + 1), view<float>(wide, m), 1.0F, dstate, m);
    block_product(n, d + 1, m, 1.0F, view<float>(wide, m), transposed(state, m), 1.0F, m_[a_.hidden.dxk], d + 1);
  }
  // drE becomes dE; drate is set, or added to.
  __device__ static void rates_gradient(int n, int width, const float* rate, const float* E, float* drE, float* drate,
                                        bool add) {
    block_rows(n, [&](int i, int lane) {
      const float along = warp_sum_of(width, lane, [&](int c) {
        const float to = drE[i * width + c];
        drE[i * width + c] = rate[i] * to;
        return to * E[i * width + c];
      });
      if (lane == 0) drate[i] = add ? drate[i] + along : along;
    });
  }

  // E of the last layer is itself a gradient: from dE (in drE) to that of z (in dz), of v - k (in gz), gamma, beta.
  __device__ void inner_gradient_gradient(const MemorySpan& s, float* line) const {
    const int n = rows(s), d = d_;
    const float *gamma = head(p_.gamma, s.head, d), *beta = head(p_.beta, s.head, d);
    const float *z = m_[a_.z], *residual = m_[a_.residual], *all_dE = m_[a_.last.drE], *all_E = m_[a_.last.E],
                *rstd = m_[a_.rstd], *mixed = m_[a_.mixed];
    float *all_gz = m_[a_.gz], *all_dz = m_[a_.dz], *all_dgz = m_[a_.dgz];
    block_rows(n, [&](int i, int lane) {
      const float *zhat = z + i * d, *dE = all_dE + i * d, *E = all_E + i * d;
      float *gz = all_gz + i * d, *dz = all_dz + i * d, *dgz = all_dgz + i * d;
      const float r = rstd[i];
      const auto [mean, along] = moments(dE, zhat, lane);
      const float dr = warp_sum_of(d, lane, [&](int c) { return dE[c] * E[c]; }) / r;  // of r, from E = r u
      for (int c = lane; c < d; c += 32) {
        dgz[c] = r * (dE[c] - mean - zhat[c] * along);
        const float derror = gamma[c] * dgz[c];
        dz[c] = gamma[c] * derror - r * (dE[c] * mixed[i] + gz[c] * along);  // of zhat
        gz[c] = -derror;                                                     // of v - k
      }
      const auto [zmean, zalong] = moments(dz, zhat, lane);
      const float pull = dr * r * r / static_cast<float>(d);
      for (int c = lane; c < d; c += 32) {
        dz[c] = r * (dz[c] - zmean - zhat[c] * zalong) - pull * zhat[c];
      }
    });
    block_for(d, [&](int c) {
      float to_gamma = 0.0F, to_beta = 0.0F;
      for (int i = 0; i < n; ++i) {
        const float zhat = z[i * d + c], dgz = all_dgz[i * d + c], derror = gamma[c] * dgz;
        to_gamma += dgz * (gamma[c] * zhat + beta[c] - residual[i * d + c]) + derror * zhat;
        to_beta += derror;
      }
      line[P_ + c] += to_gamma;
      line[P_ + d + c] += to_beta;
    });
  }

  __device__ __noinline__ void store_gradients(const TttBackward& g, const MemorySpan& s, float* line) const {
    const int d = d_;
    auto *dq = static_cast<T*>(g.dq), *dk = static_cast<T*>(g.dk), *dv = static_cast<T*>(g.dv);
    auto* rates = static_cast<float*>(g.drate);
    const auto* douts = static_cast<const T*>(g.d_o);
    const float *dxq = m_[first().dxq], *dxk = m_[first().dxk], *gz = m_[a_.gz], *drate = m_[a_.drate],
                *dtok = m_[a_.dtok];
    float* doffset = line + P_ + 2 * d + s.phase;
    block_rows(rows(s), [&](int i, int lane) {
      const std::int64_t t = token(s, i);
      for (int c = lane; c < d; c += 32) {
        const float dtarget = gz[i * d + c];
        if (dq != nullptr) {
          store_value(dq[t * d + c], to_float(douts[t * d + c]) + dxq[i * (d + 1) + c], g.write_dq);
        }
        if (dk != nullptr) store_value(dk[t * d + c], dxk[i * (d + 1) + c] - dtarget, g.write_dk);
        if (dv != nullptr) store_value(dv[t * d + c], dtarget, g.write_dv);
      }
      if (lane != 0) return;
      if (rates != nullptr) store_value(rates[t], drate[i], g.write_drate);
      if (raw_scale(s.phase + i) > 0.0F) doffset[i] += dtok[i];
    });
  }

  const TttProblem& p_;
  const TttBatchArrays& a_;
  const BlockMemory& m_;
  int P_, d_, hidden_;
};

}  // namespace weft
