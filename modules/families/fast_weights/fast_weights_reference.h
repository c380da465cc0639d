// The oracle of fast_weights.h: the definition token by token in fp64, and its gradients by reverse mode over the
// scalars of that very computation, so that no derivative is written down here. Tensors of the argument structs are
// f64.
#pragma once

#include <array>
#include <cmath>
#include <vector>

#include "modules/families/fast_weights/fast_weights.h"

namespace weft::fast_weight_reference {

// Every number that was computed, with the partial derivatives by what it was computed from.
class Graph {
 public:
  struct Edge {
    std::int32_t from;
    double partial;
  };
  std::int32_t add(std::initializer_list<Edge> edges) {
    for (const Edge& e : edges) {
      if (e.from >= 0) edges_.push_back(e);
    }
    ends_.push_back(edges_.size());
    return static_cast<std::int32_t>(ends_.size() - 1);
  }
  // adjoints: one for each number, the seeds; becomes the gradients of all of them.
  void reverse(std::vector<double>& adjoints) const {
    for (std::size_t node = ends_.size(); node-- > 0;) {
      for (std::size_t e = node == 0 ? 0 : ends_[node - 1]; e < ends_[node]; ++e) {
        adjoints[static_cast<std::size_t>(edges_[e].from)] += edges_[e].partial * adjoints[node];
      }
    }
  }
  std::size_t size() const { return ends_.size(); }

 private:
  std::vector<Edge> edges_;
  std::vector<std::size_t> ends_;
};

inline thread_local Graph* graph = nullptr;

// node -1: a constant.
struct Number {
  double value = 0.0;
  std::int32_t node = -1;
};
inline Number operator+(Number a, Number b) {
  return {a.value + b.value, graph->add({{a.node, 1.0}, {b.node, 1.0}})};
}
inline Number operator-(Number a, Number b) {
  return {a.value - b.value, graph->add({{a.node, 1.0}, {b.node, -1.0}})};
}
inline Number operator*(Number a, Number b) {
  return {a.value * b.value, graph->add({{a.node, b.value}, {b.node, a.value}})};
}
inline Number operator/(Number a, Number b) {
  return {a.value / b.value, graph->add({{a.node, 1.0 / b.value}, {b.node, -a.value / (b.value * b.value)}})};
}
inline Number multiply_add(Number a, Number b, Number c) {
  return {a.value * b.value + c.value, graph->add({{a.node, b.value}, {b.node, a.value}, {c.node, 1.0}})};
}
inline Number sqrt(Number a) {
  const double root = std::sqrt(a.value);
  return {root, graph->add({{a.node, root > 0.0 ? 0.5 / root : 0.0}})};
}
inline Number sigmoid(Number a) {
  const double s = 1.0 / (1.0 + std::exp(-a.value));
  return {s, graph->add({{a.node, s * (1.0 - s)}})};
}

using Vector = std::vector<Number>;

struct Matrix {
  Matrix(std::int64_t rows_, std::int64_t columns_)
      : rows(rows_), columns(columns_), data(static_cast<std::size_t>(rows_ * columns_)) {}
  Number& operator()(std::int64_t r, std::int64_t c) { return data[static_cast<std::size_t>(r * columns + c)]; }
  const Number& operator()(std::int64_t r, std::int64_t c) const {
    return data[static_cast<std::size_t>(r * columns + c)];
  }
  std::int64_t rows, columns;
  Vector data;
};

// W0, W2, W1: the order of the states.
using Weights = std::array<Matrix, 3>;

inline Vector times(const Matrix& A, const Vector& x) {  // A x
  Vector y(static_cast<std::size_t>(A.rows));
  for (std::int64_t r = 0; r < A.rows; ++r) {
    for (std::int64_t c = 0; c < A.columns; ++c) {
      Number& sum = y[static_cast<std::size_t>(r)];
      sum = multiply_add(A(r, c), x[static_cast<std::size_t>(c)], sum);
    }
  }
  return y;
}
inline Matrix transposed(const Matrix& A) {
  Matrix B(A.columns, A.rows);
  for (std::int64_t r = 0; r < A.rows; ++r) {
    for (std::int64_t c = 0; c < A.columns; ++c) B(c, r) = A(r, c);
  }
  return B;
}
inline Matrix product(const Matrix& A, const Matrix& B) {
  Matrix C(A.rows, B.columns);
  for (std::int64_t r = 0; r < A.rows; ++r) {
    for (std::int64_t c = 0; c < B.columns; ++c) {
      for (std::int64_t i = 0; i < A.columns; ++i) C(r, c) = multiply_add(A(r, i), B(i, c), C(r, c));
    }
  }
  return C;
}
inline void add_outer(Matrix& A, Number factor, const Vector& column, const Vector& row) {
  for (std::int64_t r = 0; r < A.rows; ++r) {
    const Number scaled = factor * column[static_cast<std::size_t>(r)];
    for (std::int64_t c = 0; c < A.columns; ++c) {
      A(r, c) = multiply_add(scaled, row[static_cast<std::size_t>(c)], A(r, c));
    }
  }
}
inline Number length(const Number* x, std::int64_t n) {
  Number squares;
  for (std::int64_t i = 0; i < n; ++i) squares = multiply_add(x[i], x[i], squares);
  return sqrt(squares);
}

// Rows of W with the norms of those of W_start.
inline Weights normalised(const Weights& W, const Weights& W_start, bool detach) {
  Weights y = W;
  for (std::size_t m = 0; m < 3; ++m) {
    for (std::int64_t r = 0; r < W[m].rows; ++r) {
      Number n = length(&W_start[m](r, 0), W[m].columns);
      if (detach) n.node = -1;
      const Number norm = length(&W[m](r, 0), W[m].columns) + Number{1e-5};
      for (std::int64_t c = 0; c < W[m].columns; ++c) y[m](r, c) = n * W[m](r, c) / norm;
    }
  }
  return y;
}

inline Matrix newton_schulz(const Matrix& Z) {
  constexpr double kTriples[5][3] = {{4.0848, -6.8946, 2.9270},
                                     {3.9505, -6.3029, 2.6377},
                                     {3.7418, -5.5913, 2.3037},
                                     {2.8769, -3.1427, 1.2046},
                                     {2.8366, -3.0525, 1.2012}};
  const bool tall = Z.rows > Z.columns;
  Matrix X = tall ? transposed(Z) : Z;
  const Number norm = length(X.data.data(), X.rows * X.columns) + Number{1e-7};
  for (Number& x : X.data) x = x / norm;
  for (const auto& [alpha, beta, gamma] : kTriples) {
    const Matrix A = product(X, transposed(X));
    Matrix B = product(A, A);
    for (std::size_t i = 0; i < B.data.size(); ++i) {
      B.data[i] = Number{beta} * A.data[i] + Number{gamma} * B.data[i];
    }
    const Matrix BX = product(B, X);
    for (std::size_t i = 0; i < X.data.size(); ++i) X.data[i] = Number{alpha} * X.data[i] + BX.data[i];
  }
  return tall ? transposed(X) : X;
}

// One head of one document; gradients are added where `g` has a place for them.
class FastWeightChain {
 public:
  FastWeightChain(const FastWeightForward& a, const FastWeightBackward* g, std::int64_t n, std::int64_t h)
      : a_(a), g_(g), n_(n), h_(h) {}

  void run() {
    graph = &own_;
    const std::int64_t L = a_.config.chunk;
    const Weights start = initial_weights();
    Weights W = start, Z = zeros();
    if (a_.initial_weights != nullptr) {
      W = load_state(a_.initial_weights, g_ == nullptr ? nullptr : g_->dinitial_weights);
      Z = load_state(a_.initial_momentum, g_ == nullptr ? nullptr : g_->dinitial_momentum);
    }
    Weights read = W, inner = W, g = zeros();
    Number mu_sum, lambda_sum;
    const std::int64_t begin = a_.cu_seqlens[n_], end = a_.cu_seqlens[n_ + 1];
    for (std::int64_t t = begin; t < end; ++t) {
      const NormMode norm = a_.config.norm;
      if ((t - begin) % L == 0) {
        read = inner = W;
        if (norm == NormMode::pre || norm == NormMode::read_raw) inner = normalised(W, start, a_.config.detach_norm);
        if (norm == NormMode::pre) read = inner;
        g = zeros();
        mu_sum = lambda_sum = {};
      }
      output(t, network(read, token(a_.q, t, a_.d_m, [](auto& b) { return b.dq; })).out);
      add_descent(t, inner, g);
      const auto gate = [&](const void* x, void* dx) { return x == nullptr ? Number{} : leaf(x, t * a_.H + h_, dx); };
      mu_sum = mu_sum + gate(a_.mu, g_ == nullptr ? nullptr : g_->dmu);
      lambda_sum = lambda_sum + gate(a_.lambda, g_ == nullptr ? nullptr : g_->dlambda);
      if ((t - begin) % L != L - 1) continue;
      const Number tokens{static_cast<double>(L)};
      const Number mu = mu_sum / tokens, keep = Number{1.0} - lambda_sum / tokens;
      const Weights base = norm == NormMode::read_raw ? inner : W;
      for (std::size_t m = 0; m < 3; ++m) {
        for (std::size_t i = 0; i < Z[m].data.size(); ++i) {
          Z[m].data[i] = multiply_add(mu, Z[m].data[i], g[m].data[i]);
        }
        const Matrix D = a_.config.orthogonalise ? newton_schulz(Z[m]) : Z[m];
        for (std::size_t i = 0; i < D.data.size(); ++i) {
          W[m].data[i] = multiply_add(keep, base[m].data[i], D.data[i]);
        }
      }
      if (norm == NormMode::post) W = normalised(W, start, a_.config.detach_norm);
    }
    store_state(W, a_.final_weights, g_ == nullptr ? nullptr : g_->dfinal_weights);
    store_state(Z, a_.final_momentum, g_ == nullptr ? nullptr : g_->dfinal_momentum);
    if (g_ == nullptr) return;
    std::vector<double> adjoints(own_.size(), 0.0);
    for (const auto& [node, seed] : seeds_) {
      if (node >= 0) adjoints[static_cast<std::size_t>(node)] += seed;
    }
    own_.reverse(adjoints);
    for (const auto& [node, target] : leaves_) *target += adjoints[static_cast<std::size_t>(node)];
  }

 private:
  struct Network {
    Vector a, b, silu, hidden, out;
  };
  Network network(const Weights& W, const Vector& x) const {
    Network f{.a = times(W[0], x), .b = times(W[1], x), .silu = {}, .hidden = {}, .out = {}};
    for (std::size_t j = 0; j < f.a.size(); ++j) {
      f.silu.push_back(f.a[j] * sigmoid(f.a[j]));
      f.hidden.push_back(f.silu[j] * f.b[j]);
    }
    f.out = times(W[2], f.hidden);
    if (a_.config.residual) {
      for (std::size_t c = 0; c < x.size(); ++c) f.out[c] = f.out[c] + x[c];
    }
    return f;
  }

  void add_descent(std::int64_t t, const Weights& W, Weights& g) {
    const Vector k = token(a_.k, t, a_.d_m, [](auto& b) { return b.dk; });
    Vector e = token(a_.v, t, a_.d_m, [](auto& b) { return b.dv; });
    const Vector eta = token(a_.eta, t, 3, [](auto& b) { return b.deta; });
    const Network f = network(W, k);
    if (a_.config.loss == InnerLoss::l2) {
      for (std::size_t c = 0; c < e.size(); ++c) e[c] = e[c] - f.out[c];
    }
    const Vector y = times(transposed(W[2]), e);
    Vector r, p;
    for (std::size_t j = 0; j < y.size(); ++j) {
      const Number s = sigmoid(f.a[j]);
      const Number slope = s * (Number{1.0} + f.a[j] * (Number{1.0} - s));
      r.push_back(y[j] * f.b[j] * slope);
      p.push_back(y[j] * f.silu[j]);
    }
    add_outer(g[0], eta[0], r, k);
    add_outer(g[1], eta[2], p, k);
    add_outer(g[2], eta[1], e, f.hidden);
  }

  Number leaf(const void* values, std::int64_t at, void* gradients) {
    Number x{static_cast<const double*>(values)[at]};
    if (gradients == nullptr) return x;
    x.node = own_.add({});
    leaves_.emplace_back(x.node, static_cast<double*>(gradients) + at);
    return x;
  }
  template <class Member>
  Vector token(const void* values, std::int64_t t, std::int64_t width, Member&& member) {
    Vector x;
    for (std::int64_t c = 0; c < width; ++c) {
      x.push_back(leaf(values, (t * a_.H + h_) * width + c, g_ == nullptr ? nullptr : member(*g_)));
    }
    return x;
  }
  Weights zeros() const { return {Matrix(a_.d_h, a_.d_m), Matrix(a_.d_h, a_.d_m), Matrix(a_.d_m, a_.d_h)}; }
  Weights initial_weights() {
    Weights W = zeros();
    const std::array<const void*, 3> from{a_.w0, a_.w2, a_.w1};
    std::array<void*, 3> to{};
    if (g_ != nullptr) to = {g_->dw0, g_->dw2, g_->dw1};
    const std::int64_t size = a_.d_h * a_.d_m;
    for (std::size_t m = 0; m < 3; ++m) {
      for (std::int64_t i = 0; i < size; ++i) {
        W[m].data[static_cast<std::size_t>(i)] = leaf(from[m], h_ * size + i, to[m]);
      }
    }
    return W;
  }
  Weights load_state(const void* values, void* gradients) {
    Weights W = zeros();
    std::int64_t at = state_offset();
    for (Matrix& m : W) {
      for (Number& x : m.data) x = leaf(values, at++, gradients);
    }
    return W;
  }
  void store_state(const Weights& W, void* to, const void* gradients) {
    std::int64_t at = state_offset();
    for (const Matrix& m : W) {
      for (const Number& x : m.data) result(x, to, gradients, at++);
    }
  }
  void output(std::int64_t t, const Vector& out) {
    std::int64_t at = (t * a_.H + h_) * a_.d_m;
    for (const Number& x : out) result(x, a_.out, g_ == nullptr ? nullptr : g_->dout, at++);
  }
  void result(Number x, void* to, const void* gradients, std::int64_t at) {
    if (to != nullptr) static_cast<double*>(to)[at] = x.value;
    if (gradients != nullptr) seeds_.emplace_back(x.node, static_cast<const double*>(gradients)[at]);
  }
  std::int64_t state_offset() const { return (n_ * a_.H + h_) * 3 * a_.d_m * a_.d_h; }

  const FastWeightForward& a_;
  const FastWeightBackward* g_;
  std::int64_t n_, h_;
  Graph own_;
  std::vector<std::pair<std::int32_t, double*>> leaves_;
  std::vector<std::pair<std::int32_t, double>> seeds_;
};

// Results and, with `g`, gradients, which are added to what their tensors hold.
inline void memory(const FastWeightForward& a, const FastWeightBackward* g) {
  for (std::int64_t n = 0; n < a.N; ++n) {
    for (std::int64_t h = 0; h < a.H; ++h) FastWeightChain(a, g, n, h).run();
  }
}

}  // namespace weft::fast_weight_reference
