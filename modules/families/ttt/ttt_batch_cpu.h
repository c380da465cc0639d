// One inner batch of one head of ttt_memory.h on the CPU, forward and backward.
//
// n <= b tokens; layers, their x, E and G as in ttt_inner_layer_cpu.h.
#pragma once

#include "autograd/gelu.h"
#include "modules/families/ttt/ttt_inner_layer_cpu.h"
#include "modules/families/ttt/ttt_memory.h"

namespace weft {

template <class T>
class TttBatchCpu {
 public:
  using Problem = TttProblem;

  TttBatchCpu(const TttProblem& p, T* scratch) : p_(p), P_(ttt_memory_size(p.d, p.m)) {
    Carver<T> carver(scratch);
    carve(carver);
  }

  static std::int64_t scratch_elements(const TttProblem& p) {
    Carver<T> carver(nullptr);
    TttBatchCpu(p, nullptr).carve(carver);
    return carver.used();
  }
  static std::int64_t state_elements(const TttProblem& p) { return 2 * ttt_memory_size(p.d, p.m); }
  // Gradients of the initial memory, of gamma and beta, and of the offsets.
  static std::int64_t line_elements(const TttProblem& p) { return ttt_memory_size(p.d, p.m) + 2 * p.d + p.C; }

  void start(std::int64_t h, T* state) const {
    for_each_part([&](const void* part, std::int64_t elements, std::int64_t at) {
      std::copy_n(static_cast<const T*>(part) + h * elements, elements, state + at);
    });
    std::fill(state + P_, state + 2 * P_, T(0));
  }
  void start_gradient(const T* dstate, T* line) const {
    for (std::int64_t i = 0; i < P_; ++i) line[i] += dstate[i];
  }

  void forward(const MemorySpan& s, T* state, T* out) {
    load(s, out != nullptr);
    train(s, state);
    if (out != nullptr) {
      read(s, state);
      const T *gamma = head(p_.gamma, s.head, p_.d), *beta = head(p_.beta, s.head, p_.d);
      for (std::int64_t i = 0; i < n_; ++i) {
        T* o = out + token(s, i) * p_.d;
        for (std::int64_t c = 0; c < p_.d; ++c) {
          o[c] = q1_[i * (p_.d + 1) + c] + gamma[c] * zq_[i * p_.d + c] + beta[c];
        }
      }
    }
    if (p_.m > 0) hidden_.advance(scales(s), state);
    last_.advance(scales(s), state);
  }

  void backward(const TttBackward& a, const MemorySpan& s, const T* state, T* dstate, T* line) {
    load(s, true);
    train(s, state);
    read(s, state);
    std::fill(dtok_, dtok_ + n_, T(0));
    if (p_.m > 0) hidden_.advance_gradient(scales(s), state, dstate);
    last_.advance_gradient(scales(s), state, dstate);
    read_gradient(a, s, state, dstate, line);
    train_gradient(s, state, dstate, line);
    store_gradients(a, s, line);
  }

 private:
  void carve(Carver<T>& carver) {
    const std::int64_t n = p_.C, d = p_.d, m = p_.m;
    if (m > 0) {
      hidden_ = TttInnerLayer<T>(n, d, m, 0, P_, carver);
      last_ = TttInnerLayer<T>(n, m, d, (d + 1) * m, P_, carver);
      for (T** x : {&a_, &slope_, &back_, &aq_, &wide_}) *x = carver.take(n * m);
    } else {
      last_ = TttInnerLayer<T>(n, d, d, 0, P_, carver);
    }
    k1_ = m > 0 ? hidden_.xk : last_.xk;
    q1_ = m > 0 ? hidden_.xq : last_.xq;
    for (T** x : {&z_, &zq_, &residual_, &gz_, &dz_}) *x = carver.take(n * d);
    for (T** x : {&rstd_, &rstd_q_, &mixed_, &rate_, &tok_, &dtok_, &drate_}) *x = carver.take(n);
    row_ = carver.take(d);
  }

  // f(pointer, elements of a head, offset in a memory) for the parts of the initial memory.
  template <class F>
  void for_each_part(F&& f) const {
    if (p_.m > 0) {
      f(p_.w1, p_.d * p_.m, 0);
      f(p_.b1, p_.m, p_.d * p_.m);
    }
    f(p_.w2, (last_.in - 1) * p_.d, last_.at);
    f(p_.b2, p_.d, last_.at + (last_.in - 1) * p_.d);
  }

  TttBatchScales<T> scales(const MemorySpan& s) const { return {n_, s.phase == 0, s.complete, tok_, dtok_}; }
  std::int64_t token(const MemorySpan& s, std::int64_t i) const { return (s.begin + i) * p_.H + s.head; }
  static const T* head(const void* x, std::int64_t h, std::int64_t width) {
    return static_cast<const T*>(x) + h * width;
  }

  void load(const MemorySpan& s, bool queries) {
    n_ = s.n;
    const std::int64_t d = p_.d;
    const auto rows = [&](const void* from, T* to) {
      for (std::int64_t i = 0; i < n_; ++i) {
        std::copy_n(static_cast<const T*>(from) + token(s, i) * d, d, to + i * (d + 1));
        to[i * (d + 1) + d] = T(1);
      }
    };
    rows(p_.k, k1_);
    if (queries) rows(p_.q, q1_);
    for (std::int64_t i = 0; i < n_; ++i) {
      const T* v = static_cast<const T*>(p_.v) + token(s, i) * d;
      for (std::int64_t c = 0; c < d; ++c) residual_[i * d + c] = v[c] - k1_[i * (d + 1) + c];
      rate_[i] = static_cast<const T*>(p_.rate)[token(s, i)];
      tok_[i] = std::max(raw_scale(s.phase + i), T(0));
    }
  }
  // 1/(t+1) + offset_t, before it is cut at 0.
  T raw_scale(std::int64_t t) const { return T(1) / static_cast<T>(t + 1) + static_cast<const T*>(p_.offset)[t]; }

  // Rows of z [n, d] become those of LN without gamma and beta.
  void normalise(T* z, T* rstd) const {
    const std::int64_t d = p_.d;
    for (std::int64_t i = 0; i < n_; ++i) {
      T* row = z + i * d;
      T sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
      for (std::int64_t c = 0; c < d; ++c) sum += row[c];
      const T mean = sum / static_cast<T>(d);
#pragma omp simd reduction(+ : squares)
      for (std::int64_t c = 0; c < d; ++c) squares += (row[c] - mean) * (row[c] - mean);
      rstd[i] = T(1) / std::sqrt(squares / static_cast<T>(d) + static_cast<T>(kTttNormEps));
      for (std::int64_t c = 0; c < d; ++c) row[c] = (row[c] - mean) * rstd[i];
    }
  }
  // dx = g - mean(g) - zhat mean(g zhat), rows of width d; returns mean(g zhat).
  T remove_moments(const T* g, const T* zhat, T* dx) const {
    const std::int64_t d = p_.d;
    T sum = 0, along = 0;
#pragma omp simd reduction(+ : sum, along)
    for (std::int64_t c = 0; c < d; ++c) {
      sum += g[c];
      along += g[c] * zhat[c];
    }
    const T mean = sum / static_cast<T>(d);
    along /= static_cast<T>(d);
    for (std::int64_t c = 0; c < d; ++c) dx[c] = g[c] - mean - zhat[c] * along;
    return along;
  }

  // The inner forward and backward pass of the keys at the weights of the batch's start: E of every layer.
  void train(const MemorySpan& s, const T* state) {
    const std::int64_t d = p_.d, m = p_.m;
    if (m > 0) {
      gemm(Op::none, Op::none, n_, m, d + 1, T(1), k1_, d + 1, state, m, T(0), a_, m);
      activate(a_, last_.xk);
      const GeluFunction gelu;
#pragma omp simd
      for (std::int64_t i = 0; i < n_ * m; ++i) slope_[i] = gelu.slope(a_[i]);
    }
    const T* W = state + last_.at;
    gemm(Op::none, Op::none, n_, d, last_.in, T(1), last_.xk, last_.in, W, d, T(0), z_, d);
    normalise(z_, rstd_);
    const T *gamma = head(p_.gamma, s.head, d), *beta = head(p_.beta, s.head, d);
    for (std::int64_t i = 0; i < n_; ++i) {
      const T* zhat = z_ + i * d;
      T *gz = gz_ + i * d, *E = last_.E + i * d;
      for (std::int64_t c = 0; c < d; ++c) gz[c] = gamma[c] * (gamma[c] * zhat[c] + beta[c] - residual_[i * d + c]);
      mixed_[i] = remove_moments(gz, zhat, E);
      for (std::int64_t c = 0; c < d; ++c) E[c] *= rstd_[i];
    }
    apply_rates(last_);
    if (m > 0) {
      gemm(Op::none, Op::transpose, n_, m, d, T(1), last_.E, d, W, d, T(0), back_, m);
#pragma omp simd
      for (std::int64_t i = 0; i < n_ * m; ++i) hidden_.E[i] = back_[i] * slope_[i];
      apply_rates(hidden_);
    }
  }
  void apply_rates(const TttInnerLayer<T>& l) const {
    for (std::int64_t i = 0; i < n_; ++i) {
      for (std::int64_t c = i * l.out; c < (i + 1) * l.out; ++c) l.rE[c] = rate_[i] * l.E[c];
    }
  }
  // Rows of gelu(a), with their constant.
  void activate(const T* a, T* x) const {
    const GeluFunction gelu;
    const std::int64_t m = p_.m;
    for (std::int64_t i = 0; i < n_; ++i) {
      T* row = x + i * (m + 1);
#pragma omp simd
      for (std::int64_t c = 0; c < m; ++c) row[c] = gelu.value(a[i * m + c]);
      row[m] = T(1);
    }
  }

  // Every query through the weights of its own token.
  void read(const MemorySpan& s, const T* state) {
    if (p_.m > 0) {
      hidden_.read(scales(s), state, aq_);
      activate(aq_, last_.xq);
    }
    last_.read(scales(s), state, zq_);
    normalise(zq_, rstd_q_);
  }

  void read_gradient(const TttBackward& a, const MemorySpan& s, const T* state, T* dstate, T* line) const {
    const std::int64_t d = p_.d, m = p_.m;
    const T* gamma = head(p_.gamma, s.head, d);
    T *dgamma = line + P_, *dbeta = dgamma + d;
    for (std::int64_t i = 0; i < n_; ++i) {
      const T* d_o = static_cast<const T*>(a.d_o) + token(s, i) * d;
      const T* zhat = zq_ + i * d;
      for (std::int64_t c = 0; c < d; ++c) {
        dgamma[c] += d_o[c] * zhat[c];
        dbeta[c] += d_o[c];
        row_[c] = gamma[c] * d_o[c];
      }
      remove_moments(row_, zhat, dz_ + i * d);
      for (std::int64_t c = 0; c < d; ++c) dz_[i * d + c] *= rstd_q_[i];
    }
    last_.read_gradient(scales(s), state, dz_, dstate);
    if (m == 0) return;
    const GeluFunction gelu;
    for (std::int64_t i = 0; i < n_; ++i) {
#pragma omp simd
      for (std::int64_t c = 0; c < m; ++c) {
        wide_[i * m + c] = last_.dxq[i * (m + 1) + c] * gelu.slope(aq_[i * m + c]);
      }
    }
    hidden_.read_gradient(scales(s), state, wide_, dstate);
  }

  // The adjoint of train(): from drE and dxk to dxk of the keys, dW, and what reaches v - k (in gz_).
  void train_gradient(const MemorySpan& s, const T* state, T* dstate, T* line) const {
    const std::int64_t d = p_.d, m = p_.m;
    const T* W = state + last_.at;
    T* dW = dstate + last_.at;
    for (std::int64_t i = 0; i < n_; ++i) {
      drate_[i] = dot(last_.drE + i * d, last_.E + i * d, d);
      for (std::int64_t c = i * d; c < (i + 1) * d; ++c) last_.drE[c] *= rate_[i];  // now dE
    }
    if (m > 0) {
      const GeluFunction gelu;
      for (std::int64_t i = 0; i < n_; ++i) {
        drate_[i] += dot(hidden_.drE + i * m, hidden_.E + i * m, m);
#pragma omp simd
        for (std::int64_t c = i * m; c < (i + 1) * m; ++c) {
          const T dE = rate_[i] * hidden_.drE[c];
          hidden_.drE[c] = dE * slope_[c];                   // of E W2^T
          wide_[c] = dE * back_[c] * gelu.curvature(a_[c]);  // of a
        }
      }
      gemm(Op::none, Op::none, n_, d, m, T(1), hidden_.drE, m, W, d, T(1), last_.drE, d);
      gemm(Op::transpose, Op::none, m, d, n_, T(1), hidden_.drE, m, last_.E, d, T(1), dW, d);
    }
    inner_gradient_gradient(s, line);
    const std::int64_t in = last_.in;
    gemm(Op::transpose, Op::none, in, d, n_, T(1), last_.xk, in, dz_, d, T(1), dW, d);
    gemm(Op::none, Op::transpose, n_, in, d, T(1), dz_, d, W, d, T(1), last_.dxk, in);
    if (m == 0) return;
    for (std::int64_t i = 0; i < n_; ++i) {
#pragma omp simd
      for (std::int64_t c = 0; c < m; ++c) wide_[i * m + c] += last_.dxk[i * in + c] * slope_[i * m + c];
    }
    gemm(Op::transpose, Op::none, d + 1, m, n_, T(1), k1_, d + 1, wide_, m, T(1), dstate, m);
    gemm(Op::none, Op::transpose, n_, d + 1, m, T(1), wide_, m, state, m, T(1), hidden_.dxk, d + 1);
  }

  // E of the last layer is itself a gradient: from dE (in drE) to that of z (in dz_), of v - k (in gz_), gamma, beta.
  void inner_gradient_gradient(const MemorySpan& s, T* line) const {
    const std::int64_t d = p_.d;
    const T *gamma = head(p_.gamma, s.head, d), *beta = head(p_.beta, s.head, d);
    T *dgamma = line + P_, *dbeta = dgamma + d;
    for (std::int64_t i = 0; i < n_; ++i) {
      const T *zhat = z_ + i * d, *dE = last_.drE + i * d;
      T *gz = gz_ + i * d, *dz = dz_ + i * d;
      const T r = rstd_[i];
      const T along = remove_moments(dE, zhat, row_) * r;  // mean(u' zhat), u' = r dE
      const T dr = dot(dE, last_.E + i * d, d) / r;        // of r, from E = r u
      for (std::int64_t c = 0; c < d; ++c) {
        const T dgz = r * row_[c], error = gamma[c] * zhat[c] + beta[c] - residual_[i * d + c];
        const T derror = gamma[c] * dgz;
        dgamma[c] += dgz * error + derror * zhat[c];
        dbeta[c] += derror;
        row_[c] = gamma[c] * derror - r * dE[c] * mixed_[i] - gz[c] * along;  // of zhat
        gz[c] = -derror;                                                      // of v - k
      }
      remove_moments(row_, zhat, dz);
      const T pull = dr * r * r / static_cast<T>(d);
      for (std::int64_t c = 0; c < d; ++c) dz[c] = r * dz[c] - pull * zhat[c];
    }
  }

  void store_gradients(const TttBackward& a, const MemorySpan& s, T* line) const {
    const std::int64_t d = p_.d;
    const TttInnerLayer<T>& first = p_.m > 0 ? hidden_ : last_;
    T *dq = static_cast<T*>(a.dq), *dk = static_cast<T*>(a.dk), *dv = static_cast<T*>(a.dv);
    T* doffset = line + P_ + 2 * d + s.phase;
    for (std::int64_t i = 0; i < n_; ++i) {
      const std::int64_t t = token(s, i);
      const T* d_o = static_cast<const T*>(a.d_o) + t * d;
      for (std::int64_t c = 0; c < d; ++c) {
        const T dtarget = gz_[i * d + c];
        if (dq != nullptr) store(dq[t * d + c], d_o[c] + first.dxq[i * (d + 1) + c], a.write_dq);
        if (dk != nullptr) store(dk[t * d + c], first.dxk[i * (d + 1) + c] - dtarget, a.write_dk);
        if (dv != nullptr) store(dv[t * d + c], dtarget, a.write_dv);
      }
      if (a.drate != nullptr) store(static_cast<T*>(a.drate)[t], drate_[i], a.write_drate);
      if (raw_scale(s.phase + i) > T(0)) doffset[i] += dtok_[i];
    }
  }

  const TttProblem& p_;
  std::int64_t P_;
  std::int64_t n_ = 0;
  TttInnerLayer<T> hidden_, last_;
  T *k1_, *q1_;                                          // x of the first layer
  T *a_ = nullptr, *slope_ = nullptr, *back_ = nullptr;  // [n, m] hidden pre-activations of keys, gelu', E W2^T
  T *aq_ = nullptr, *wide_ = nullptr;                    // [n, m] of queries; gradients
  T *z_, *zq_;                                           // [n, d] normalised outputs, without gamma and beta
  T *residual_, *gz_, *dz_;                              // [n, d] v - k; gradient at LN's output; gradients of z
  T *rstd_, *rstd_q_, *mixed_;                           // [n] of LN; mean(gz zhat)
  T *rate_, *tok_, *dtok_, *drate_;                      // [n]
  T* row_;                                               // [d]
};

}  // namespace weft
