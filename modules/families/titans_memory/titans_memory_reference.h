// The oracle of titans_memory.h: the recurrence token by token in fp64, and its reverse. Tensors of the argument
// structs are f64; one head of one document.
#pragma once

#include <vector>

#include "modules/families/titans_memory/titans_memory.h"

namespace weft {

class TitansReference {
 public:
  using Matrix = std::vector<double>;  // [d_k, d_v]

  TitansReference(const TitansProblem& p, std::int64_t n, std::int64_t h) : p_(p), n_(n), h_(h), size_(p.d_k * p.d_v) {}

  void forward(double* o, double* final_state) {
    State s = start();
    for (std::int64_t t = begin(); t < end(); ++t) {
      enter(s, t);
      step(s, t);
      for (std::int64_t y = 0; y < p_.d_v; ++y) {
        double sum = 0.0;
        for (std::int64_t x = 0; x < p_.d_k; ++x) sum += key(p_.q, t, x) * s.W[at(x, y)];
        o[(t * p_.H + h_) * p_.d_v + y] = sum;
      }
      leave(s, t);
    }
    double* to = final_state + (n_ * p_.H + h_) * 3 * size_;
    for (const Matrix* part : {&s.W, &s.Z, &s.Wc}) to = std::copy(part->begin(), part->end(), to);
  }

  // All token gradients are overwritten; dweights is added to, dstate overwritten.
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
      const State& was = before[static_cast<std::size_t>(t - begin())];
      State now = was;
      step(now, t);
      if (place(t) == p_.C - 1) {  // Wc' = W
        add(d.W, d.Wc);
        d.Wc = zero();
      }
      const double keep = gate(p_.keep, t), mu = gate(p_.momentum, t), rate = gate(p_.rate, t);
      Matrix error(static_cast<std::size_t>(p_.d_v)), derror(static_cast<std::size_t>(p_.d_v), 0.0);
      for (std::int64_t y = 0; y < p_.d_v; ++y) error[static_cast<std::size_t>(y)] = error_of(was, t, y);
      double dkeep = 0.0, dmu = 0.0, drate = 0.0;
      for (std::int64_t x = 0; x < p_.d_k; ++x) {
        double dq = 0.0, dk = 0.0;
        for (std::int64_t y = 0; y < p_.d_v; ++y) {
          const std::size_t i = at(x, y), v = static_cast<std::size_t>(y);
          const double d_o = value(a.d_o, t, y);
          dq += d_o * now.W[i];
          d.W[i] += d_o * key(p_.q, t, x);
          d.Z[i] += d.W[i];  // W = keep W_before + Z
          dkeep += d.W[i] * was.W[i];
          d.W[i] *= keep;
          dmu += d.Z[i] * was.Z[i];  // Z = mu Z_before - rate k^T error
          drate -= d.Z[i] * key(p_.k, t, x) * error[v];
          dk -= d.Z[i] * rate * error[v];
          derror[v] -= d.Z[i] * rate * key(p_.k, t, x);
          d.Z[i] *= mu;
        }
        put(a.dq, t, x, p_.d_k, dq);
        put(a.dk, t, x, p_.d_k, dk);
      }
      for (std::int64_t y = 0; y < p_.d_v; ++y) {  // error = k Wc - v
        const double de = derror[static_cast<std::size_t>(y)];
        put(a.dv, t, y, p_.d_v, -de);
        for (std::int64_t x = 0; x < p_.d_k; ++x) {
          static_cast<double*>(a.dk)[(t * p_.H + h_) * p_.d_k + x] += de * was.Wc[at(x, y)];
          d.Wc[at(x, y)] += de * key(p_.k, t, x);
        }
      }
      put(a.dkeep, t, 0, 1, dkeep);
      put(a.dmomentum, t, 0, 1, dmu);
      put(a.drate, t, 0, 1, drate);
      if (place(t) == 0) {  // Wc = W
        add(d.W, d.Wc);
        d.Wc = zero();
      }
    }
    if (p_.state == nullptr) {
      double* to = static_cast<double*>(a.dweights) + h_ * size_;
      for (std::size_t i = 0; i < d.W.size(); ++i) to[i] += d.W[i];
    } else {
      double* to = static_cast<double*>(a.dstate) + (n_ * p_.H + h_) * 3 * size_;
      for (const Matrix* part : {&d.W, &d.Z, &d.Wc}) to = std::copy(part->begin(), part->end(), to);
    }
  }

 private:
  struct State {
    Matrix W, Z, Wc;
  };

  std::int64_t begin() const { return p_.cu_seqlens[n_]; }
  std::int64_t end() const { return p_.cu_seqlens[n_ + 1]; }
  std::int64_t place(std::int64_t t) const { return (t - begin() + (p_.phase == nullptr ? 0 : p_.phase[n_])) % p_.C; }
  std::size_t at(std::int64_t x, std::int64_t y) const { return static_cast<std::size_t>(x * p_.d_v + y); }
  Matrix zero() const { return Matrix(static_cast<std::size_t>(size_), 0.0); }
  static void add(Matrix& to, const Matrix& from) {
    for (std::size_t i = 0; i < to.size(); ++i) to[i] += from[i];
  }
  double key(const void* x, std::int64_t t, std::int64_t i) const {
    return static_cast<const double*>(x)[(t * p_.H + h_) * p_.d_k + i];
  }
  double value(const void* x, std::int64_t t, std::int64_t i) const {
    return static_cast<const double*>(x)[(t * p_.H + h_) * p_.d_v + i];
  }
  double gate(const void* x, std::int64_t t) const { return static_cast<const double*>(x)[t * p_.H + h_]; }
  void put(void* to, std::int64_t t, std::int64_t i, std::int64_t width, double x) const {
    static_cast<double*>(to)[(t * p_.H + h_) * width + i] = x;
  }
  State load(const void* states) const {
    const double* from = static_cast<const double*>(states) + (n_ * p_.H + h_) * 3 * size_;
    return {Matrix(from, from + size_), Matrix(from + size_, from + 2 * size_),
            Matrix(from + 2 * size_, from + 3 * size_)};
  }
  State start() const {
    if (p_.state != nullptr) return load(p_.state);
    const double* w = static_cast<const double*>(p_.weights) + h_ * size_;
    return {Matrix(w, w + size_), zero(), zero()};
  }
  void enter(State& s, std::int64_t t) const {
    if (place(t) == 0) s.Wc = s.W;
  }
  void leave(State& s, std::int64_t t) const {
    if (place(t) == p_.C - 1) s.Wc = s.W;
  }
  double error_of(const State& s, std::int64_t t, std::int64_t y) const {
    double error = -value(p_.v, t, y);
    for (std::int64_t x = 0; x < p_.d_k; ++x) error += key(p_.k, t, x) * s.Wc[at(x, y)];
    return error;
  }
  void step(State& s, std::int64_t t) const {
    for (std::int64_t y = 0; y < p_.d_v; ++y) {
      const double error = error_of(s, t, y);
      for (std::int64_t x = 0; x < p_.d_k; ++x) {
        const std::size_t i = at(x, y);
        s.Z[i] = gate(p_.momentum, t) * s.Z[i] - gate(p_.rate, t) * key(p_.k, t, x) * error;
        s.W[i] = gate(p_.keep, t) * s.W[i] + s.Z[i];
      }
    }
  }

  const TitansProblem& p_;
  std::int64_t n_, h_, size_;
};

}  // namespace weft
