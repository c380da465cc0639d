// One chunk of one head of titans_memory.h on the CPU, forward and backward.
//
// n <= C tokens. M_tj = prod_{j<s<=t} mu_s is what is left in Z_t of the step of token j, c_tj what it has added to
// W_t; A_t, f_t and B_t are the same for the W and Z of the chunk's start:
//   M_t = mu_t M_{t-1},  M_tt = 1     c_t = keep_t c_{t-1} + M_t     A_t = keep_t A_{t-1}
//   B_t = mu_t B_{t-1}                f_t = keep_t f_{t-1} + B_t     A = B = 1, f = 0 before the chunk
// Rows are built by these recurrences: products of factors in [0, 1], no logarithms and no quotients.
#pragma once

#include "autograd/blas.h"
#include "modules/families/memory_walk_cpu.h"
#include "modules/families/titans_memory/titans_memory.h"
#include "modules/families/triangular_products.h"

namespace weft {

template <class T>
class TitansChunkCpu {
 public:
  using Problem = TitansProblem;

  TitansChunkCpu(const TitansProblem& p, T* scratch)
      : p_(p), size_(p.d_k * p.d_v), ld_k_(p.H * p.d_k), ld_v_(p.H * p.d_v) {
    Carver<T> carver(scratch);
    carve(carver);
  }

  static std::int64_t scratch_elements(const TitansProblem& p) {
    Carver<T> carver(nullptr);
    TitansChunkCpu(p, nullptr).carve(carver);
    return carver.used();
  }
  static std::int64_t state_elements(const TitansProblem& p) { return 3 * p.d_k * p.d_v; }
  static std::int64_t line_elements(const TitansProblem& p) { return p.d_k * p.d_v; }

  void start(std::int64_t h, T* state) const {
    std::copy_n(static_cast<const T*>(p_.weights) + h * size_, size_, state);
    std::fill(state + size_, state + 3 * size_, T(0));
  }
  void start_gradient(const T* dstate, T* line) const {
    for (std::int64_t i = 0; i < size_; ++i) line[i] += dstate[i];
  }

  void forward(const MemorySpan& s, T* state, T* out) {
    load(s, state);
    if (out != nullptr) {
      read(state);
      T* o = out + value_offset_;
      for (std::int64_t t = 0; t < n_; ++t) {
        for (std::int64_t y = 0; y < p_.d_v; ++y)
          o[t * ld_v_ + y] = A_[t] * qw_[t * p_.d_v + y] + f_[t] * qz_[t * p_.d_v + y];
      }
      gemm(Op::none, Op::none, n_, p_.d_v, n_, T(-1), X_, n_, e_, p_.d_v, T(1), o, ld_v_);
    }
    advance(s, state);
  }

  void backward(const TitansBackward& a, const MemorySpan& s, const T* state, T* dstate, T*) {
    load(s, state);
    read(state);
    T *dW = dstate, *dZ = dstate + size_, *dWc = dstate + 2 * size_;
    if (s.complete) {  // the next chunk starts with W
      for (std::int64_t i = 0; i < size_; ++i) dW[i] += dWc[i];
      std::fill(dWc, dWc + size_, T(0));
    }
    clear_coefficient_gradients();
    advance_gradient(state, dW, dZ);
    const T* d_o = static_cast<const T*>(a.d_o) + value_offset_;
    read_gradient(d_o, state, dW, dZ);
    error_gradient(dWc);
    if (s.phase == 0) {
      for (std::int64_t i = 0; i < size_; ++i) dW[i] += dWc[i];
      std::fill(dWc, dWc + size_, T(0));
    }
    coefficient_gradients();
    store_gradients(a, s);
  }

 private:
  void carve(Carver<T>& carver) {
    const std::int64_t n = p_.C, d_k = p_.d_k, d_v = p_.d_v;
    for (T** x : {&M_, &c_, &P_, &X_, &dM_, &dc_, &dP_}) *x = carver.take(n * n);
    for (T** x : {&keep_, &mu_, &rate_, &A_, &B_, &f_, &dkeep_, &dmu_, &drate_, &dA_, &dB_, &df_}) {
      *x = carver.take(n);
    }
    for (T** x : {&e_, &qw_, &qz_, &ce_, &me_, &de_, &Ado_, &fdo_}) *x = carver.take(n * d_v);
    for (T** x : {&dq_, &dk_}) *x = carver.take(n * d_k);
  }

  void load(const MemorySpan& s, const T* state) {
    n_ = s.n;
    key_offset_ = (s.begin * p_.H + s.head) * p_.d_k;
    value_offset_ = (s.begin * p_.H + s.head) * p_.d_v;
    q_ = static_cast<const T*>(p_.q) + key_offset_;
    k_ = static_cast<const T*>(p_.k) + key_offset_;
    start_ = s.phase == 0 ? state : state + 2 * size_;
    const auto row = [&](const void* from, T* to) {
      for (std::int64_t t = 0; t < n_; ++t) to[t] = static_cast<const T*>(from)[(s.begin + t) * p_.H + s.head];
    };
    row(p_.keep, keep_);
    row(p_.momentum, mu_);
    row(p_.rate, rate_);
    coefficients();
    const T* v = static_cast<const T*>(p_.v) + value_offset_;
    for (std::int64_t t = 0; t < n_; ++t) {
      for (std::int64_t y = 0; y < p_.d_v; ++y) e_[t * p_.d_v + y] = v[t * ld_v_ + y];
    }
    gemm(Op::none, Op::none, n_, p_.d_v, p_.d_k, T(1), k_, ld_k_, start_, p_.d_v, T(-1), e_, p_.d_v);
  }

  // Rows t hold entries j <= t; those to the right stay 0.
  void coefficients() {
    T A = 1, B = 1, f = 0;
    for (std::int64_t t = 0; t < n_; ++t) {
      A_[t] = A = keep_[t] * A;
      B_[t] = B = mu_[t] * B;
      f_[t] = f = keep_[t] * f + B;
      T *M = M_ + t * n_, *c = c_ + t * n_;
#pragma omp simd
      for (std::int64_t j = 0; j < t; ++j) {
        M[j] = mu_[t] * M[j - n_];
        c[j] = keep_[t] * c[j - n_] + M[j];
      }
      M[t] = c[t] = T(1);
      std::fill(M + t + 1, M + n_, T(0));
      std::fill(c + t + 1, c + n_, T(0));
    }
  }

  // P = tril(Q K^T), X = P c theta, and what the queries read from W and Z.
  void read(const T* state) {
    gemm(Op::none, Op::transpose, n_, n_, p_.d_k, T(1), q_, ld_k_, k_, ld_k_, T(0), P_, n_);
    for (std::int64_t t = 0; t < n_; ++t) {
      for (std::int64_t j = 0; j <= t; ++j) X_[t * n_ + j] = P_[t * n_ + j] * c_[t * n_ + j] * rate_[j];
      std::fill(P_ + t * n_ + t + 1, P_ + (t + 1) * n_, T(0));
      std::fill(X_ + t * n_ + t + 1, X_ + (t + 1) * n_, T(0));
    }
    gemm(Op::none, Op::none, n_, p_.d_v, p_.d_k, T(1), q_, ld_k_, state, p_.d_v, T(0), qw_, p_.d_v);
    gemm(Op::none, Op::none, n_, p_.d_v, p_.d_k, T(1), q_, ld_k_, state + size_, p_.d_v, T(0), qz_, p_.d_v);
  }

  // W' = A_n W + f_n Z - K^T ce, Z' = B_n Z - K^T me with rows ce_j = c_nj theta_j e_j, me_j = M_nj theta_j e_j.
  void weigh_errors() {
    const T *c = c_ + (n_ - 1) * n_, *M = M_ + (n_ - 1) * n_;
    for (std::int64_t j = 0; j < n_; ++j) {
      for (std::int64_t i = j * p_.d_v; i < (j + 1) * p_.d_v; ++i) {
        ce_[i] = c[j] * rate_[j] * e_[i];
        me_[i] = M[j] * rate_[j] * e_[i];
      }
    }
  }
  void advance(const MemorySpan& s, T* state) {
    T *W = state, *Z = state + size_, *Wc = state + 2 * size_;
    weigh_errors();
    if (s.phase == 0 && !s.complete) std::copy_n(W, size_, Wc);
    const T A = A_[n_ - 1], B = B_[n_ - 1], f = f_[n_ - 1];
    for (std::int64_t i = 0; i < size_; ++i) {
      W[i] = A * W[i] + f * Z[i];
      Z[i] *= B;
    }
    gemm(Op::transpose, Op::none, p_.d_k, p_.d_v, n_, T(-1), k_, ld_k_, ce_, p_.d_v, T(1), W, p_.d_v);
    gemm(Op::transpose, Op::none, p_.d_k, p_.d_v, n_, T(-1), k_, ld_k_, me_, p_.d_v, T(1), Z, p_.d_v);
    if (s.complete) std::copy_n(W, size_, Wc);
  }

  void clear_coefficient_gradients() {
    for (T* x : {dkeep_, dmu_, drate_, dA_, dB_, df_}) std::fill(x, x + n_, T(0));
    for (T* x : {dM_, dc_}) std::fill(x, x + n_ * n_, T(0));
  }

  // dW and dZ from after the chunk to before it, without what reads add; sets de and dk.
  void advance_gradient(const T* state, T* dW, T* dZ) {
    weigh_errors();
    const std::int64_t d_v = p_.d_v, last = n_ - 1;
    gemm(Op::none, Op::transpose, n_, p_.d_k, d_v, T(-1), ce_, d_v, dW, d_v, T(0), dk_, p_.d_k);
    gemm(Op::none, Op::transpose, n_, p_.d_k, d_v, T(-1), me_, d_v, dZ, d_v, T(1), dk_, p_.d_k);
    gemm(Op::none, Op::none, n_, d_v, p_.d_k, T(-1), k_, ld_k_, dW, d_v, T(0), ce_, d_v);  // now dce, dme
    gemm(Op::none, Op::none, n_, d_v, p_.d_k, T(-1), k_, ld_k_, dZ, d_v, T(0), me_, d_v);
    for (std::int64_t j = 0; j < n_; ++j) {
      const std::int64_t at = last * n_ + j;
      const T to_c = dot(ce_ + j * d_v, e_ + j * d_v, d_v), to_M = dot(me_ + j * d_v, e_ + j * d_v, d_v);
      dc_[at] += rate_[j] * to_c;
      dM_[at] += rate_[j] * to_M;
      drate_[j] += c_[at] * to_c + M_[at] * to_M;
      for (std::int64_t i = j * d_v; i < (j + 1) * d_v; ++i) {
        de_[i] = rate_[j] * (c_[at] * ce_[i] + M_[at] * me_[i]);
      }
    }
    const T *W = state, *Z = state + size_;
    dA_[last] += dot(dW, W, size_);
    df_[last] += dot(dW, Z, size_);
    dB_[last] += dot(dZ, Z, size_);
    const T A = A_[last], B = B_[last], f = f_[last];
    for (std::int64_t i = 0; i < size_; ++i) {
      dZ[i] = f * dW[i] + B * dZ[i];
      dW[i] *= A;
    }
  }

  // Sets dq; adds to dk, de, dW, dZ and to the gradients of coefficients and rates.
  void read_gradient(const T* d_o, const T* state, T* dW, T* dZ) {
    const std::int64_t d_k = p_.d_k, d_v = p_.d_v;
    for (std::int64_t t = 0; t < n_; ++t) {
      const T* row = d_o + t * ld_v_;
      dA_[t] += dot(row, qw_ + t * d_v, d_v);
      df_[t] += dot(row, qz_ + t * d_v, d_v);
      for (std::int64_t y = 0; y < d_v; ++y) {
        Ado_[t * d_v + y] = A_[t] * row[y];
        fdo_[t * d_v + y] = f_[t] * row[y];
      }
    }
    gemm(Op::transpose, Op::none, n_, d_v, n_, T(-1), X_, n_, d_o, ld_v_, T(1), de_, d_v);
    gemm(Op::none, Op::transpose, n_, n_, d_v, T(-1), d_o, ld_v_, e_, d_v, T(0), dP_, n_);  // dX first
    for (std::int64_t t = 0; t < n_; ++t) {
      T *dX = dP_ + t * n_, *dc = dc_ + t * n_;
      const T *P = P_ + t * n_, *c = c_ + t * n_;
#pragma omp simd
      for (std::int64_t j = 0; j <= t; ++j) {
        const T dPc = dX[j] * P[j];
        dc[j] += dPc * rate_[j];
        drate_[j] += dPc * c[j];
        dX[j] *= c[j] * rate_[j];
      }
      std::fill(dX + t + 1, dX + n_, T(0));
    }
    gemm(Op::none, Op::none, n_, d_k, n_, T(1), dP_, n_, k_, ld_k_, T(0), dq_, d_k);
    gemm(Op::none, Op::transpose, n_, d_k, d_v, T(1), Ado_, d_v, state, d_v, T(1), dq_, d_k);
    gemm(Op::none, Op::transpose, n_, d_k, d_v, T(1), fdo_, d_v, state + size_, d_v, T(1), dq_, d_k);
    gemm(Op::transpose, Op::none, n_, d_k, n_, T(1), dP_, n_, q_, ld_k_, T(1), dk_, d_k);
    gemm(Op::transpose, Op::none, d_k, d_v, n_, T(1), q_, ld_k_, Ado_, d_v, T(1), dW, d_v);
    gemm(Op::transpose, Op::none, d_k, d_v, n_, T(1), q_, ld_k_, fdo_, d_v, T(1), dZ, d_v);
  }

  // e = K Wc - V
  void error_gradient(T* dWc) {
    gemm(Op::none, Op::transpose, n_, p_.d_k, p_.d_v, T(1), de_, p_.d_v, start_, p_.d_v, T(1), dk_, p_.d_k);
    gemm(Op::transpose, Op::none, p_.d_k, p_.d_v, n_, T(1), k_, ld_k_, de_, p_.d_v, T(1), dWc, p_.d_v);
  }

  // The recurrences of coefficients() in reverse.
  void coefficient_gradients() {
    for (std::int64_t t = n_ - 1; t >= 0; --t) {
      const T A = t > 0 ? A_[t - 1] : T(1), B = t > 0 ? B_[t - 1] : T(1), f = t > 0 ? f_[t - 1] : T(0);
      dB_[t] += df_[t];
      T to_keep = df_[t] * f + dA_[t] * A, to_mu = dB_[t] * B;
      T *dM = dM_ + t * n_, *dc = dc_ + t * n_;
      const T *M = M_ + t * n_, *c = c_ + t * n_;
#pragma omp simd reduction(+ : to_keep, to_mu)
      for (std::int64_t j = 0; j < t; ++j) {
        dM[j] += dc[j];
        to_keep += dc[j] * c[j - n_];
        to_mu += dM[j] * M[j - n_];
        dc[j - n_] += keep_[t] * dc[j];
        dM[j - n_] += mu_[t] * dM[j];
      }
      dkeep_[t] = to_keep;
      dmu_[t] = to_mu;
      if (t == 0) break;
      df_[t - 1] += keep_[t] * df_[t];
      dA_[t - 1] += keep_[t] * dA_[t];
      dB_[t - 1] += mu_[t] * dB_[t];
    }
  }

  void store_gradients(const TitansBackward& a, const MemorySpan& s) {
    const auto rows = [&](void* to, Write write, std::int64_t offset, std::int64_t ld, std::int64_t width, T sign,
                          const T* from) {
      if (to == nullptr) return;
      T* target = static_cast<T*>(to) + offset;
      for (std::int64_t t = 0; t < n_; ++t) {
        for (std::int64_t x = 0; x < width; ++x) store(target[t * ld + x], sign * from[t * width + x], write);
      }
    };
    rows(a.dq, a.write_dq, key_offset_, ld_k_, p_.d_k, T(1), dq_);
    rows(a.dk, a.write_dk, key_offset_, ld_k_, p_.d_k, T(1), dk_);
    rows(a.dv, a.write_dv, value_offset_, ld_v_, p_.d_v, T(-1), de_);
    const std::int64_t gate_offset = s.begin * p_.H + s.head;
    rows(a.dkeep, a.write_dkeep, gate_offset, p_.H, 1, T(1), dkeep_);
    rows(a.dmomentum, a.write_dmomentum, gate_offset, p_.H, 1, T(1), dmu_);
    rows(a.drate, a.write_drate, gate_offset, p_.H, 1, T(1), drate_);
  }

  const TitansProblem& p_;
  std::int64_t size_, ld_k_, ld_v_;  // elements of a matrix; rows of keys and of values
  std::int64_t n_ = 0, key_offset_ = 0, value_offset_ = 0;
  const T *q_ = nullptr, *k_ = nullptr, *start_ = nullptr;  // start_: the weights at which gradients are taken
  T *M_, *c_, *P_, *X_, *dM_, *dc_, *dP_;                   // [n, n]
  T *keep_, *mu_, *rate_, *A_, *B_, *f_;                    // [n]
  T *dkeep_, *dmu_, *drate_, *dA_, *dB_, *df_;              // [n]
  T *e_, *qw_, *qz_, *ce_, *me_, *de_, *Ado_, *fdo_;        // [n, d_v]
  T *dq_, *dk_;                                             // [n, d_k]
};

}  // namespace weft
