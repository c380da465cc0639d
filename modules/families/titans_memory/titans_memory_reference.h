// The oracle of titans_memory.h: the recurrence token by token in fp64, and its reverse. Tensors of the argument
// structs are f64; one head of one document.
#pragma once

#include <cmath>
#include <vector>

#include "modules/families/titans_memory/titans_memory.h"

namespace weft {

class TitansReference {
 public:
  using Vector = std::vector<double>;

  TitansReference(const TitansProblem& p, std::int64_t n, std::int64_t h)
      : p_(p),
        n_(n),
        h_(h),
        into_(p.m > 0 ? p.m : p.d_k),
        first_(p.d_k * p.m),
        P_(titans_memory_size(p.d_k, p.m, p.d_v)) {}

  void forward(double* o, double* final_state) {
    State s = start();
    for (std::int64_t t = begin(); t < end(); ++t) {
      enter(s, t);
      step(s, t);
      const Vector out = map(s.W, first_, hidden(s.W, row(p_.q, t, p_.d_k)), p_.d_v);
      std::copy(out.begin(), out.end(), o + (t * p_.H + h_) * p_.d_v);
      leave(s, t);
    }
    double* to = final_state + (n_ * p_.H + h_) * 3 * P_;
    for (const Vector* part : {&s.W, &s.Z, &s.Wc}) to = std::copy(part->begin(), part->end(), to);
  }

  // All token gradients are overwritten; dw1 and dw2 are added to, dstate overwritten.
  void backward(const TitansBackward& a) {
    std::vector<State> before;  // after enter()
    State s = start();
    for (std::int64_t t = begin(); t < end(); ++t) {
      enter(s, t);
      before.push_back(s);
      step(s, t);
      leave(s, t);
    }
    State d{zero(), zero(), zero()};
    if (a.dfinal_state != nullptr) d = load(a.dfinal_state);
    for (std::int64_t t = end() - 1; t >= begin(); --t) {
      const State& was = before[size(t - begin())];
      State now = was;
      step(now, t);
      if (place(t) == p_.C - 1) fold(d);  // Wc' = W
      put(a.dq, t, read_gradient(now.W, row(p_.q, t, p_.d_k), row(a.d_o, t, p_.d_v), d.W));
      const double keep = gate(p_.keep, t), mu = gate(p_.momentum, t), rate = gate(p_.rate, t);
      const Vector g = gradient(was.Wc, t);
      Vector dg(size(P_));
      double dkeep = 0.0, dmu = 0.0, drate = 0.0;
      for (std::size_t i = 0; i < size(P_); ++i) {
        d.Z[i] += d.W[i];  // W = keep W_before + Z
        dkeep += d.W[i] * was.W[i];
        d.W[i] *= keep;
        dmu += d.Z[i] * was.Z[i];  // Z = mu Z_before - rate g
        drate -= d.Z[i] * g[i];
        dg[i] = -rate * d.Z[i];
        d.Z[i] *= mu;
      }
      gradient_gradient(a, was.Wc, t, dg, d.Wc);
      put(a.dkeep, t, {dkeep});
      put(a.dmomentum, t, {dmu});
      put(a.drate, t, {drate});
      if (place(t) == 0) fold(d);  // Wc = W
    }
    if (p_.state == nullptr) {
      for (std::int64_t i = 0; i < P_; ++i) {
        double* to = i < first_ ? static_cast<double*>(a.dw1) + h_ * first_ + i
                                : static_cast<double*>(a.dw2) + h_ * (P_ - first_) + i - first_;
        *to += d.W[size(i)];
      }
    } else {
      double* to = static_cast<double*>(a.dstate) + (n_ * p_.H + h_) * 3 * P_;
      for (const Vector* part : {&d.W, &d.Z, &d.Wc}) to = std::copy(part->begin(), part->end(), to);
    }
  }

 private:
  struct State {
    Vector W, Z, Wc;
  };

  static std::size_t size(std::int64_t i) { return static_cast<std::size_t>(i); }
  std::int64_t begin() const { return p_.cu_seqlens[n_]; }
  std::int64_t end() const { return p_.cu_seqlens[n_ + 1]; }
  std::int64_t place(std::int64_t t) const { return (t - begin() + (p_.phase == nullptr ? 0 : p_.phase[n_])) % p_.C; }
  Vector zero() const { return Vector(size(P_), 0.0); }
  Vector row(const void* x, std::int64_t t, std::int64_t width) const {
    const double* from = static_cast<const double*>(x) + (t * p_.H + h_) * width;
    return {from, from + width};
  }
  double gate(const void* x, std::int64_t t) const { return static_cast<const double*>(x)[t * p_.H + h_]; }
  void put(void* to, std::int64_t t, const Vector& x) const {
    std::copy(x.begin(), x.end(), static_cast<double*>(to) + (t * p_.H + h_) * static_cast<std::int64_t>(x.size()));
  }

  State load(const void* states) const {
    const double* from = static_cast<const double*>(states) + (n_ * p_.H + h_) * 3 * P_;
    return {Vector(from, from + P_), Vector(from + P_, from + 2 * P_), Vector(from + 2 * P_, from + 3 * P_)};
  }
  State start() const {
    if (p_.state != nullptr) return load(p_.state);
    Vector W;
    if (p_.m > 0) {
      const double* w1 = static_cast<const double*>(p_.w1) + h_ * first_;
      W.assign(w1, w1 + first_);
    }
    const double* w2 = static_cast<const double*>(p_.w2) + h_ * (P_ - first_);
    W.insert(W.end(), w2, w2 + P_ - first_);
    return {W, zero(), zero()};
  }
  void enter(State& s, std::int64_t t) const {
    if (place(t) == 0) s.Wc = s.W;
  }
  void leave(State& s, std::int64_t t) const {
    if (place(t) == p_.C - 1) s.Wc = s.W;
  }
  void fold(State& d) const {
    for (std::size_t i = 0; i < d.W.size(); ++i) d.W[i] += d.Wc[i];
    d.Wc = zero();
  }
  void step(State& s, std::int64_t t) const {
    const Vector g = gradient(s.Wc, t);
    for (std::size_t i = 0; i < g.size(); ++i) {
      s.Z[i] = gate(p_.momentum, t) * s.Z[i] - gate(p_.rate, t) * g[i];
      s.W[i] = gate(p_.keep, t) * s.W[i] + s.Z[i];
    }
  }

  static constexpr double kC = 0.7978845608028654, kA = 0.044715;
  static double gelu(double x) { return 0.5 * x * (1.0 + std::tanh(kC * (x + kA * x * x * x))); }
  static double gelu1(double x) {
    const double t = std::tanh(kC * (x + kA * x * x * x));
    return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * kC * (1.0 + 3.0 * kA * x * x);
  }
  static double gelu2(double x) {
    const double t = std::tanh(kC * (x + kA * x * x * x)), s = 1.0 - t * t;
    const double u1 = kC * (1.0 + 3.0 * kA * x * x), u2 = 6.0 * kC * kA * x;
    return s * u1 + 0.5 * x * (s * u2 - 2.0 * t * s * u1 * u1);
  }

  // x W for the matrix [x.size(), out] at an offset of the memory.
  static Vector map(const Vector& memory, std::int64_t at, const Vector& x, std::int64_t out) {
    Vector y(size(out), 0.0);
    for (std::size_t i = 0; i < x.size(); ++i) {
      for (std::size_t o = 0; o < y.size(); ++o) y[o] += x[i] * memory[size(at) + i * y.size() + o];
    }
    return y;
  }
  // y W^T
  static Vector map_back(const Vector& memory, std::int64_t at, std::int64_t in, const Vector& y) {
    Vector x(size(in), 0.0);
    for (std::size_t i = 0; i < x.size(); ++i) {
      for (std::size_t o = 0; o < y.size(); ++o) x[i] += memory[size(at) + i * y.size() + o] * y[o];
    }
    return x;
  }
  // target += x^T y
  static void add_outer(Vector& target, std::int64_t at, const Vector& x, const Vector& y) {
    for (std::size_t i = 0; i < x.size(); ++i) {
      for (std::size_t o = 0; o < y.size(); ++o) target[size(at) + i * y.size() + o] += x[i] * y[o];
    }
  }
  template <class F>
  static Vector times(const Vector& x, const Vector& a, F&& f) {
    Vector y = x;
    for (std::size_t i = 0; i < y.size(); ++i) y[i] *= f(a[i]);
    return y;
  }

  // What enters the last layer for the input x.
  Vector hidden(const Vector& W, const Vector& x) const {
    if (p_.m == 0) return x;
    Vector y = map(W, 0, x, p_.m);
    for (double& a : y) a = gelu(a);
    return y;
  }
  Vector read_gradient(const Vector& W, const Vector& x, const Vector& dy, Vector& dW) const {
    add_outer(dW, first_, hidden(W, x), dy);
    const Vector dh = map_back(W, first_, into_, dy);
    if (p_.m == 0) return dh;
    const Vector da = times(dh, map(W, 0, x, p_.m), gelu1);
    add_outer(dW, 0, x, da);
    return map_back(W, 0, p_.d_k, da);
  }

  // The gradient of |f(k) - v|^2 / 2 with respect to the memory.
  Vector gradient(const Vector& W, std::int64_t t) const {
    const Vector k = row(p_.k, t, p_.d_k), h = hidden(W, k), e = error(W, t, h);
    Vector g = zero();
    add_outer(g, first_, h, e);
    if (p_.m > 0) add_outer(g, 0, k, times(map_back(W, first_, p_.m, e), map(W, 0, k, p_.m), gelu1));
    return g;
  }
  Vector error(const Vector& W, std::int64_t t, const Vector& h) const {
    Vector e = map(W, first_, h, p_.d_v);
    const Vector v = row(p_.v, t, p_.d_v);
    for (std::size_t y = 0; y < e.size(); ++y) e[y] -= v[y];
    return e;
  }
  void gradient_gradient(const TitansBackward& a, const Vector& W, std::int64_t t, const Vector& dg, Vector& dW) const {
    const Vector k = row(p_.k, t, p_.d_k), h = hidden(W, k), e = error(W, t, h);
    Vector de = map(dg, first_, h, p_.d_v);  // g2 = h^T e
    Vector dh = map_back(dg, first_, into_, e), dk(size(p_.d_k), 0.0), da(size(p_.m), 0.0);
    Vector pre;
    if (p_.m > 0) {  // g1 = k^T ((e W2^T) gelu'(a))
      pre = map(W, 0, k, p_.m);
      const Vector back = map_back(W, first_, p_.m, e), dE1 = map(dg, 0, k, p_.m);
      dk = map_back(dg, 0, p_.d_k, times(back, pre, gelu1));
      const Vector dback = times(dE1, pre, gelu1), bent = times(dE1, pre, gelu2);
      for (std::size_t i = 0; i < da.size(); ++i) da[i] = bent[i] * back[i];
      const Vector through = map(W, first_, dback, p_.d_v);
      for (std::size_t y = 0; y < de.size(); ++y) de[y] += through[y];
      add_outer(dW, first_, dback, e);
    }
    // e = h W2 - v
    Vector dv = de;
    for (double& x : dv) x = -x;
    add_outer(dW, first_, h, de);
    const Vector through = map_back(W, first_, into_, de);
    for (std::size_t i = 0; i < dh.size(); ++i) dh[i] += through[i];
    if (p_.m > 0) {  // h = gelu(k W1)
      const Vector more = times(dh, pre, gelu1);
      for (std::size_t i = 0; i < da.size(); ++i) da[i] += more[i];
      add_outer(dW, 0, k, da);
      dh = map_back(W, 0, p_.d_k, da);
    }
    for (std::size_t i = 0; i < dk.size(); ++i) dk[i] += dh[i];
    put(a.dk, t, dk);
    put(a.dv, t, dv);
  }

  const TitansProblem& p_;
  std::int64_t n_, h_, into_, first_, P_;  // rows of w2; numbers of w1; of both
};

}  // namespace weft
