// One chunk of one head of titans_memory.h on the CPU, forward and backward.
//
// n <= C tokens; layers, their x and E as in titans_inner_layer_cpu.h. Without a hidden layer there is only the last.
#pragma once

#include "autograd/gelu.h"
#include "modules/families/memory_walk_cpu.h"
#include "modules/families/titans_memory/titans_inner_layer_cpu.h"
#include "modules/families/titans_memory/titans_memory.h"

namespace weft {

template <class T>
class TitansChunkCpu {
 public:
  using Problem = TitansProblem;

  TitansChunkCpu(const TitansProblem& p, T* scratch) : TitansChunkCpu(p, Carver<T>(scratch)) {}

  static std::int64_t scratch_elements(const TitansProblem& p) { return TitansChunkCpu(p, nullptr).used_; }
  static std::int64_t state_elements(const TitansProblem& p) { return 3 * titans_memory_size(p.d_k, p.m, p.d_v); }
  static std::int64_t line_elements(const TitansProblem& p) { return titans_memory_size(p.d_k, p.m, p.d_v); }

  void start(std::int64_t h, T* state) const {
    const std::int64_t first = P_ - last_.in * last_.out;  // numbers of the hidden layer
    if (first > 0) std::copy_n(static_cast<const T*>(p_.w1) + h * first, first, state);
    std::copy_n(static_cast<const T*>(p_.w2) + h * (P_ - first), P_ - first, state + first);
    std::fill(state + P_, state + 3 * P_, T(0));
  }
  void start_gradient(const T* dstate, T* line) const {
    for (std::int64_t i = 0; i < P_; ++i) line[i] += dstate[i];
  }

  void forward(const MemorySpan& s, T* state, T* out) {
    load(s, out != nullptr);
    train(weights(s, state));
    if (out != nullptr) {
      read(state);
      for (std::int64_t t = 0; t < co_.n; ++t) std::copy_n(y_ + t * p_.d_v, p_.d_v, out + token(s, t) * p_.d_v);
    }
    T* Wc = state + 2 * P_;
    if (s.phase == 0 && !s.complete) std::copy_n(state, P_, Wc);
    if (p_.m > 0) hidden_.advance(co_, state);
    last_.advance(co_, state);
    if (s.complete) std::copy_n(state, P_, Wc);
  }

  void backward(const TitansBackward& a, const MemorySpan& s, const T* state, T* dstate, T*) {
    load(s, true);
    train(weights(s, state));
    read(state);
    if (s.complete) fold(dstate);  // the next chunk trains at W
    co_.clear_gradients();
    if (p_.m > 0) hidden_.advance_gradient(co_, state, dstate);
    last_.advance_gradient(co_, state, dstate);
    read_gradient(a, s, state, dstate);
    train_gradient(weights(s, state), dstate + 2 * P_);
    if (s.phase == 0) fold(dstate);  // this one does
    co_.finish_gradients();
    store_gradients(a, s);
  }

 private:
  TitansChunkCpu(const TitansProblem& p, Carver<T> carver)
      : p_(p), P_(titans_memory_size(p.d_k, p.m, p.d_v)), co_(p.C, carver) {
    const std::int64_t m = p.m;
    if (m > 0) {
      hidden_ = TitansInnerLayer<T>(p.C, p.d_k, m, 0, P_, carver);
      for (T** x : {&a_, &slope_, &back_, &aq_, &wide_}) *x = carver.take(p.C * m);
    }
    last_ = TitansInnerLayer<T>(p.C, m > 0 ? m : p.d_k, p.d_v, m > 0 ? p.d_k * m : 0, P_, carver);
    for (T** x : {&y_, &dy_}) *x = carver.take(p.C * p.d_v);
    used_ = carver.used();
  }

  const TitansInnerLayer<T>& first() const { return p_.m > 0 ? hidden_ : last_; }
  std::int64_t token(const MemorySpan& s, std::int64_t t) const { return (s.begin + t) * p_.H + s.head; }
  // The weights at which gradients are taken.
  const T* weights(const MemorySpan& s, const T* state) const { return s.phase == 0 ? state : state + 2 * P_; }
  // dW += dWc, dWc = 0
  void fold(T* dstate) const {
    for (std::int64_t i = 0; i < P_; ++i) dstate[i] += dstate[2 * P_ + i];
    std::fill(dstate + 2 * P_, dstate + 3 * P_, T(0));
  }

  void load(const MemorySpan& s, bool queries) {
    co_.n = s.n;
    const auto rows = [&](const void* from, std::int64_t width, T* to) {
      for (std::int64_t t = 0; t < s.n; ++t) {
        std::copy_n(static_cast<const T*>(from) + token(s, t) * width, width, to + t * width);
      }
    };
    rows(p_.keep, 1, co_.keep);
    rows(p_.momentum, 1, co_.mu);
    rows(p_.rate, 1, co_.rate);
    co_.compute();
    rows(p_.k, p_.d_k, first().xk);
    if (queries) rows(p_.q, p_.d_k, first().xq);
    rows(p_.v, p_.d_v, last_.E);  // train() subtracts it
  }

  void activate(const T* a, T* x) const {
    const GeluFunction gelu;
#pragma omp simd
    for (std::int64_t i = 0; i < co_.n * p_.m; ++i) x[i] = gelu.value(a[i]);
  }

  // The inner forward and backward pass of the keys: E of every layer.
  void train(const T* W) {
    const std::int64_t n = co_.n, m = p_.m, d_v = p_.d_v;
    if (m > 0) {
      gemm(Op::none, Op::none, n, m, p_.d_k, T(1), hidden_.xk, p_.d_k, W, m, T(0), a_, m);
      activate(a_, last_.xk);
    }
    gemm(Op::none, Op::none, n, d_v, last_.in, T(1), last_.xk, last_.in, W + last_.at, d_v, T(-1), last_.E, d_v);
    if (m == 0) return;
    gemm(Op::none, Op::transpose, n, m, d_v, T(1), last_.E, d_v, W + last_.at, d_v, T(0), back_, m);
    const GeluFunction gelu;
#pragma omp simd
    for (std::int64_t i = 0; i < n * m; ++i) {
      slope_[i] = gelu.slope(a_[i]);
      hidden_.E[i] = back_[i] * slope_[i];
    }
  }

  // Every query through the weights of its own token.
  void read(const T* state) {
    if (p_.m > 0) {
      hidden_.read(co_, state, aq_);
      activate(aq_, last_.xq);
    }
    last_.read(co_, state, y_);
  }

  void read_gradient(const TitansBackward& a, const MemorySpan& s, const T* state, T* dstate) {
    for (std::int64_t t = 0; t < s.n; ++t) {
      std::copy_n(static_cast<const T*>(a.d_o) + token(s, t) * p_.d_v, p_.d_v, dy_ + t * p_.d_v);
    }
    last_.read_gradient(co_, state, dy_, dstate);
    if (p_.m == 0) return;
    const GeluFunction gelu;
#pragma omp simd
    for (std::int64_t i = 0; i < co_.n * p_.m; ++i) wide_[i] = last_.dxq[i] * gelu.slope(aq_[i]);
    hidden_.read_gradient(co_, state, wide_, dstate);
  }

  // The adjoint of train(): from dE and dxk to dxk of the keys and dWc; dE of the last layer becomes -dv.
  void train_gradient(const T* W, T* dWc) {
    const std::int64_t n = co_.n, m = p_.m, d_v = p_.d_v, in = last_.in;
    const T* W2 = W + last_.at;
    T* dW2 = dWc + last_.at;
    if (m > 0) {
      const GeluFunction gelu;
#pragma omp simd
      for (std::int64_t i = 0; i < n * m; ++i) {
        wide_[i] = hidden_.dE[i] * back_[i] * gelu.curvature(a_[i]);  // of a
        hidden_.dE[i] *= slope_[i];                                   // of E W2^T
      }
      gemm(Op::none, Op::none, n, d_v, m, T(1), hidden_.dE, m, W2, d_v, T(1), last_.dE, d_v);
      gemm(Op::transpose, Op::none, m, d_v, n, T(1), hidden_.dE, m, last_.E, d_v, T(1), dW2, d_v);
    }
    gemm(Op::none, Op::transpose, n, in, d_v, T(1), last_.dE, d_v, W2, d_v, T(1), last_.dxk, in);
    gemm(Op::transpose, Op::none, in, d_v, n, T(1), last_.xk, in, last_.dE, d_v, T(1), dW2, d_v);
    if (m == 0) return;
#pragma omp simd
    for (std::int64_t i = 0; i < n * m; ++i) wide_[i] += last_.dxk[i] * slope_[i];
    gemm(Op::none, Op::transpose, n, p_.d_k, m, T(1), wide_, m, W, m, T(1), hidden_.dxk, p_.d_k);
    gemm(Op::transpose, Op::none, p_.d_k, m, n, T(1), hidden_.xk, p_.d_k, wide_, m, T(1), dWc, m);
  }

  void store_gradients(const TitansBackward& a, const MemorySpan& s) {
    const auto rows = [&](void* to, Write write, std::int64_t width, T sign, const T* from) {
      if (to == nullptr) return;
      for (std::int64_t t = 0; t < s.n; ++t) {
        T* target = static_cast<T*>(to) + token(s, t) * width;
        for (std::int64_t x = 0; x < width; ++x) store(target[x], sign * from[t * width + x], write);
      }
    };
    rows(a.dq, a.write_dq, p_.d_k, T(1), first().dxq);
    rows(a.dk, a.write_dk, p_.d_k, T(1), first().dxk);
    rows(a.dv, a.write_dv, p_.d_v, T(-1), last_.dE);
    rows(a.dkeep, a.write_dkeep, 1, T(1), co_.dkeep);
    rows(a.dmomentum, a.write_dmomentum, 1, T(1), co_.dmu);
    rows(a.drate, a.write_drate, 1, T(1), co_.drate);
  }

  const TitansProblem& p_;
  std::int64_t P_, used_ = 0;
  TitansCoefficients<T> co_;
  TitansInnerLayer<T> hidden_, last_;
  T *a_ = nullptr, *slope_ = nullptr, *back_ = nullptr;  // [n, m] hidden pre-activations of keys, gelu', E W2^T
  T *aq_ = nullptr, *wide_ = nullptr;                    // [n, m] of queries; gradients
  T *y_ = nullptr, *dy_ = nullptr;                       // [n, d_v] what queries read
};

}  // namespace weft
