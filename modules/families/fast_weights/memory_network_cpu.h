// The network of one head on a block of rows: reading, the gradient that writing takes, and the gradients of both.
//
// n rows of a block; U = [W0; W2] [2 d_h, d_m] is the first part of the P elements of W, W1 [d_m, d_h] the second.
#pragma once

#include "autograd/blas.h"
#include "autograd/carver.h"
#include "autograd/vec_math.h"
#include "modules/families/fast_weights/fast_weights.h"

namespace weft {

// Rows of one head, `ld` elements apart.
template <class T>
struct Rows {
  T* data = nullptr;
  std::int64_t ld = 0;

  T* operator[](std::int64_t i) const { return data + i * ld; }
  Rows from(std::int64_t i) const { return {data == nullptr ? nullptr : data + i * ld, ld}; }
  explicit operator bool() const { return data != nullptr; }
};

// Where gradients of rows go.
template <class T>
struct RowGradients {
  Rows<T> rows;
  Write write = Write::overwrite;

  RowGradients from(std::int64_t i) const { return {rows.from(i), write}; }
  // tile [n, width]
  void put(const T* tile, std::int64_t n, std::int64_t width) const {
    if (!rows) return;
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t c = 0; c < width; ++c) store(rows[i][c], tile[i * width + c], write);
    }
  }
  // The same for a gradient that is zero.
  void put_zero(std::int64_t n, std::int64_t width) const {
    if (!rows || write == Write::accumulate) return;
    for (std::int64_t i = 0; i < n; ++i) std::fill(rows[i], rows[i] + width, T(0));
  }
};

// What a chunk, or a block of its rows, writes into the memory.
template <class T>
struct WrittenRows {
  std::int64_t n;
  Rows<const T> k, v, eta, mu, lambda;  // widths d_m, d_m, 3, 1, 1; mu and lambda may be null

  WrittenRows block(std::int64_t begin, std::int64_t end) const {
    return {end - begin, k.from(begin), v.from(begin), eta.from(begin), mu.from(begin), lambda.from(begin)};
  }
};

template <class T>
class MemoryNetwork {
 public:
  // Rows that are treated together: their intermediate results stay in the second-level cache.
  static constexpr std::int64_t kRows = 128;

  MemoryNetwork(const FastWeightProblem& p, T* scratch)
      : d_m_(p.d_m),
        d_h_(p.d_h),
        in_(2 * p.d_h * p.d_m),
        l2_(p.config.loss == InnerLoss::l2),
        rho_(p.config.residual ? T(1) : T(0)) {
    Carver<T> carver(scratch);
    const std::int64_t rows = std::min(kRows, p.config.chunk);
    ab_ = carver.take(rows * 2 * d_h_);
    hidden_ = carver.take(rows * d_h_);
    error_ = carver.take(rows * d_m_);
    y_ = carver.take(rows * d_h_);
    rp_ = carver.take(rows * 2 * d_h_);
    c02_ = carver.take(rows * 2 * d_h_);
    dab_ = carver.take(rows * 2 * d_h_);
    dhidden_ = carver.take(rows * d_h_);
    dy_ = carver.take(rows * d_h_);
    derror_ = carver.take(rows * d_m_);
    dx_ = carver.take(rows * d_m_);
    size_ = carver.used();
  }
  static std::int64_t scratch_elements(const FastWeightProblem& p) { return MemoryNetwork(p, nullptr).size_; }

  // out = f_W(q)
  void read(std::int64_t n, Rows<const T> q, const T* W, Rows<T> out) {
    forward(n, q, W);
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t c = 0; c < d_m_; ++c) out[i][c] = rho_ * q[i][c];
    }
    gemm(Op::none, Op::transpose, n, d_m_, d_h_, T(1), hidden_, d_h_, W + in_, d_h_, T(1), out.data, out.ld);
  }

  // g [P] = what the rows add to the momentum, gradients taken at W.
  void descent(const WrittenRows<T>& x, const T* W, T* g) {
    inner_gradients(x, W);
    for (std::int64_t i = 0; i < x.n; ++i) {
      for (std::int64_t c = 0; c < d_m_; ++c) error_[i * d_m_ + c] *= x.eta[i][1];
    }
    gemm(Op::transpose, Op::none, 2 * d_h_, d_m_, x.n, T(1), rp_, 2 * d_h_, x.k.data, x.k.ld, T(0), g, d_m_);
    gemm(Op::transpose, Op::none, d_m_, d_h_, x.n, T(1), error_, d_m_, hidden_, d_h_, T(0), g + in_, d_h_);
  }

  // Gradients of read(): dW [P] is written.
  void read_gradients(std::int64_t n, Rows<const T> q, const T* W, Rows<const T> dout, const RowGradients<T>& dq,
                      T* dW) {
    forward(n, q, W);
    gemm(Op::none, Op::none, n, d_h_, d_m_, T(1), dout.data, dout.ld, W + in_, d_h_, T(0), dhidden_, d_h_);
    for (std::int64_t i = 0; i < n; ++i) {
      const T *a = ab_ + i * 2 * d_h_, *b = a + d_h_, *dh = dhidden_ + i * d_h_;
      T *da = dab_ + i * 2 * d_h_, *db = da + d_h_;
#pragma omp simd
      for (std::int64_t j = 0; j < d_h_; ++j) {
        const T s = sigmoid(a[j]);
        da[j] = dh[j] * b[j] * s * (T(1) + a[j] * (T(1) - s));
        db[j] = dh[j] * a[j] * s;
      }
    }
    if (dq.rows) {
      for (std::int64_t i = 0; i < n; ++i) {
        for (std::int64_t c = 0; c < d_m_; ++c) dx_[i * d_m_ + c] = rho_ * dout[i][c];
      }
      gemm(Op::none, Op::none, n, d_m_, 2 * d_h_, T(1), dab_, 2 * d_h_, W, d_m_, T(1), dx_, d_m_);
      dq.put(dx_, n, d_m_);
    }
    gemm(Op::transpose, Op::none, 2 * d_h_, d_m_, n, T(1), dab_, 2 * d_h_, q.data, q.ld, T(0), dW, d_m_);
    gemm(Op::transpose, Op::none, d_m_, d_h_, n, T(1), dout.data, dout.ld, hidden_, d_h_, T(0), dW + in_, d_h_);
  }

  // Gradients of descent(), given dg [P]: through the inner gradients themselves, so of second order. dW is written.
  void descent_gradients(const WrittenRows<T>& x, const T* W, const T* dg, const RowGradients<T>& dk,
                         const RowGradients<T>& dv, const RowGradients<T>& deta, T* dW) {
    const std::int64_t n = x.n;
    inner_gradients(x, W);
    // c0 | c2 = k (dg0 | dg2)^T, c1 = h dg1^T, c1' = e dg1; the part of dk that does not pass through the network.
    gemm(Op::none, Op::transpose, n, 2 * d_h_, d_m_, T(1), x.k.data, x.k.ld, dg, d_m_, T(0), c02_, 2 * d_h_);
    gemm(Op::none, Op::transpose, n, d_m_, d_h_, T(1), hidden_, d_h_, dg + in_, d_h_, T(0), derror_, d_m_);
    gemm(Op::none, Op::none, n, d_h_, d_m_, T(1), error_, d_m_, dg + in_, d_h_, T(0), dhidden_, d_h_);
    gemm(Op::none, Op::none, n, d_m_, 2 * d_h_, T(1), rp_, 2 * d_h_, dg, d_m_, T(0), dx_, d_m_);
    for (std::int64_t i = 0; i < n; ++i)
      through_inner_gradients(i, x.eta[i], deta.rows ? deta.rows[i] : nullptr, deta.write);

    // From the hidden gradient y = e W1 back to e and W1, and for l2 from e = v - f(k) to f(k).
    const T* W1 = W + in_;
    gemm(Op::none, Op::transpose, n, d_m_, d_h_, T(1), dy_, d_h_, W1, d_h_, T(1), derror_, d_m_);
    gemm(Op::transpose, Op::none, d_m_, d_h_, n, T(1), error_, d_m_, dy_, d_h_, T(0), dW + in_, d_h_);
    if (l2_) {
      for (std::int64_t e = 0; e < n * d_m_; ++e) dx_[e] -= rho_ * derror_[e];
      gemm(Op::transpose, Op::none, d_m_, d_h_, n, T(-1), derror_, d_m_, hidden_, d_h_, T(1), dW + in_, d_h_);
      gemm(Op::none, Op::none, n, d_h_, d_m_, T(-1), derror_, d_m_, W1, d_h_, T(1), dhidden_, d_h_);
    }
    dv.put(derror_, n, d_m_);
    for (std::int64_t i = 0; i < n; ++i) through_hidden(i);
    gemm(Op::transpose, Op::none, 2 * d_h_, d_m_, n, T(1), dab_, 2 * d_h_, x.k.data, x.k.ld, T(0), dW, d_m_);
    gemm(Op::none, Op::none, n, d_m_, 2 * d_h_, T(1), dab_, 2 * d_h_, W, d_m_, T(1), dx_, d_m_);
    dk.put(dx_, n, d_m_);
  }

 private:
  // ab = x U^T, hidden = silu(a) * b
  void forward(std::int64_t n, Rows<const T> x, const T* W) {
    gemm(Op::none, Op::transpose, n, 2 * d_h_, d_m_, T(1), x.data, x.ld, W, d_m_, T(0), ab_, 2 * d_h_);
    for (std::int64_t i = 0; i < n; ++i) {
      const T *a = ab_ + i * 2 * d_h_, *b = a + d_h_;
      T* h = hidden_ + i * d_h_;
#pragma omp simd
      for (std::int64_t j = 0; j < d_h_; ++j) h[j] = a[j] * sigmoid(a[j]) * b[j];
    }
  }

  // error e, y = e W1, and rp = eta0 r | eta2 p with r = y b silu'(a), p = y silu(a).
  void inner_gradients(const WrittenRows<T>& x, const T* W) {
    forward(x.n, x.k, W);
    const T rho = l2_ ? rho_ : T(0);
    for (std::int64_t i = 0; i < x.n; ++i) {
      for (std::int64_t c = 0; c < d_m_; ++c) error_[i * d_m_ + c] = x.v[i][c] - rho * x.k[i][c];
    }
    if (l2_) {
      gemm(Op::none, Op::transpose, x.n, d_m_, d_h_, T(-1), hidden_, d_h_, W + in_, d_h_, T(1), error_, d_m_);
    }
    gemm(Op::none, Op::none, x.n, d_h_, d_m_, T(1), error_, d_m_, W + in_, d_h_, T(0), y_, d_h_);
    for (std::int64_t i = 0; i < x.n; ++i) {
      const T *a = ab_ + i * 2 * d_h_, *b = a + d_h_, *y = y_ + i * d_h_;
      T *r = rp_ + i * 2 * d_h_, *p = r + d_h_;
      const T eta0 = x.eta[i][0], eta2 = x.eta[i][2];
#pragma omp simd
      for (std::int64_t j = 0; j < d_h_; ++j) {
        const T s = sigmoid(a[j]);
        r[j] = eta0 * y[j] * b[j] * s * (T(1) + a[j] * (T(1) - s));
        p[j] = eta2 * y[j] * a[j] * s;
      }
    }
  }

  // Row i: from c0, c2, c1 (in derror), c1' (in dhidden) to deta, dy, db, and de, dh without what y passes back. What a
  // receives comes in two parts: through silu'(a) in da, and the gradient of silu(a), which replaces c0.
  void through_inner_gradients(std::int64_t i, const T* eta, T* deta, Write write) {
    const T *a = ab_ + i * 2 * d_h_, *b = a + d_h_, *y = y_ + i * d_h_;
    T *c0 = c02_ + i * 2 * d_h_, *c2 = c0 + d_h_;
    T *da = dab_ + i * 2 * d_h_, *db = da + d_h_, *dy = dy_ + i * d_h_, *dh = dhidden_ + i * d_h_;
    T *e = error_ + i * d_m_, *de = derror_ + i * d_m_;
    T eta0_sum = 0, eta2_sum = 0, eta1_sum = 0;
#pragma omp simd reduction(+ : eta0_sum, eta2_sum)
    for (std::int64_t j = 0; j < d_h_; ++j) {
      const T s = sigmoid(a[j]);
      const T silu = a[j] * s;
      const T slope = s * (T(1) + a[j] * (T(1) - s));
      const T curvature = s * (T(1) - s) * (T(2) + a[j] * (T(1) - T(2) * s));
      eta0_sum += y[j] * b[j] * slope * c0[j];
      eta2_sum += y[j] * silu * c2[j];
      const T dr = eta[0] * c0[j];
      const T dp = eta[2] * c2[j];
      dy[j] = dp * silu + dr * b[j] * slope;
      db[j] = dr * y[j] * slope;
      da[j] = dr * y[j] * b[j] * curvature;
      c0[j] = dp * y[j];
      dh[j] *= eta[1];
    }
#pragma omp simd reduction(+ : eta1_sum)
    for (std::int64_t c = 0; c < d_m_; ++c) {
      eta1_sum += e[c] * de[c];
      de[c] *= eta[1];
    }
    if (deta == nullptr) return;
    store(deta[0], eta0_sum, write);
    store(deta[1], eta1_sum, write);
    store(deta[2], eta2_sum, write);
  }

  // Row i: adds what the hidden row received to dab.
  void through_hidden(std::int64_t i) {
    const T *a = ab_ + i * 2 * d_h_, *b = a + d_h_, *dh = dhidden_ + i * d_h_, *dsilu = c02_ + i * 2 * d_h_;
    T *da = dab_ + i * 2 * d_h_, *db = da + d_h_;
#pragma omp simd
    for (std::int64_t j = 0; j < d_h_; ++j) {
      const T s = sigmoid(a[j]);
      da[j] += (dsilu[j] + dh[j] * b[j]) * s * (T(1) + a[j] * (T(1) - s));
      db[j] += dh[j] * a[j] * s;
    }
  }

  std::int64_t d_m_, d_h_;
  std::int64_t in_;  // elements of U
  bool l2_;
  T rho_;
  std::int64_t size_ = 0;
  T *ab_, *hidden_, *error_, *y_, *rp_;             // forward
  T *c02_, *dab_, *dhidden_, *dy_, *derror_, *dx_;  // and their gradients
};

}  // namespace weft
