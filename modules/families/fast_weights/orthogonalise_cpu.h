// NS(Z): a matrix with the singular vectors of Z and singular values pushed towards 1, by five Newton-Schulz steps of
// odd polynomials (the orthogonalisation of Muon), and its gradient.
//
//   X <- Z / (|Z|_F + eps);   five times   A = X X^T,  B = beta A + gamma A^2,  X <- alpha X + B X
//
// Z [m, n]; the iteration works on R = min(m, n) rows and C = max(m, n) columns, transposed if m > n. It runs in fp64
// whatever T is: the steps enlarge small singular values up to 500 times, and rounding errors with them.
#pragma once

#include <cmath>

#include "autograd/blas.h"
#include "autograd/carver.h"

namespace weft {

template <class T>
class Orthogonaliser {
 public:
  static constexpr int kSteps = 5;

  Orthogonaliser(std::int64_t m, std::int64_t n, T* scratch) : m_(m), n_(n), R_(std::min(m, n)), C_(std::max(m, n)) {
    Carver<double> carver(reinterpret_cast<double*>(scratch));
    for (double*& X : X_) X = carver.take(R_ * C_);
    A_ = carver.take(R_ * R_);
    B_ = carver.take(R_ * R_);
    dB_ = carver.take(R_ * R_);
    dA_ = carver.take(R_ * R_);
    dX_ = carver.take(R_ * C_);
    dX_before_ = carver.take(R_ * C_);
    size_ = carver.used() * static_cast<std::int64_t>(sizeof(double) / sizeof(T));
  }
  static std::int64_t scratch_elements(std::int64_t m, std::int64_t n) { return Orthogonaliser(m, n, nullptr).size_; }

  // Computes NS(Z) and keeps what gradient() needs; `to` [m, n] may be null.
  void run(const T* Z, T* to) {
    load(Z, X_[0]);
    double squares = 0.0;
    for (std::int64_t e = 0; e < R_ * C_; ++e) squares += X_[0][e] * X_[0][e];
    norm_ = std::sqrt(squares);
    for (std::int64_t e = 0; e < R_ * C_; ++e) X_[0][e] /= norm_ + kEps;
    for (int i = 0; i < kSteps; ++i) {
      polynomial(i);
      std::copy(X_[i], X_[i] + R_ * C_, X_[i + 1]);
      product(B_, X_[i], kTriples[i][0], X_[i + 1]);
    }
    if (to == nullptr) return;
    for_each_element([&](std::int64_t given, std::int64_t own) { to[given] = static_cast<T>(X_[kSteps][own]); });
  }

  // dZ += the gradient of Z, from that of NS(Z); after run() with the same Z.
  void gradient(const T* Z, const T* dD, T* dZ) {
    load(dD, dX_);
    for (int i = kSteps - 1; i >= 0; --i) {
      const auto [alpha, beta, gamma] = kTriples[i];
      polynomial(i);
      gemm(Op::none, Op::transpose, R_, R_, C_, 1.0, dX_, C_, X_[i], C_, 0.0, dB_, R_);
      std::copy(dB_, dB_ + R_ * R_, dA_);
      gemm(Op::none, Op::none, R_, R_, R_, gamma, dB_, R_, A_, R_, beta, dA_, R_);
      gemm(Op::none, Op::none, R_, R_, R_, gamma, A_, R_, dB_, R_, 1.0, dA_, R_);
      for (std::int64_t r = 0; r < R_; ++r) {
        for (std::int64_t c = 0; c <= r; ++c) {
          const double sum = dA_[r * R_ + c] + dA_[c * R_ + r];
          dA_[r * R_ + c] = dA_[c * R_ + r] = sum;
        }
      }
      std::copy(dX_, dX_ + R_ * C_, dX_before_);
      product(B_, dX_, alpha, dX_before_);
      product(dA_, X_[i], 1.0, dX_before_);
      std::swap(dX_, dX_before_);
    }
    // X_0 = Z / (|Z| + eps)
    double inner = 0.0;
    for_each_element([&](std::int64_t given, std::int64_t own) { inner += dX_[own] * static_cast<double>(Z[given]); });
    const double r = norm_ + kEps;
    const double along = norm_ > 0.0 ? inner / (r * r * norm_) : 0.0;
    for_each_element([&](std::int64_t given, std::int64_t own) {
      dZ[given] += static_cast<T>(dX_[own] / r - along * static_cast<double>(Z[given]));
    });
  }

 private:
  static constexpr double kEps = 1e-7;
  static constexpr double kTriples[kSteps][3] = {{4.0848, -6.8946, 2.9270},
                                                 {3.9505, -6.3029, 2.6377},
                                                 {3.7418, -5.5913, 2.3037},
                                                 {2.8769, -3.1427, 1.2046},
                                                 {2.8366, -3.0525, 1.2012}};

  // A = X X^T and B = beta A + gamma A^2 of step i.
  void polynomial(int i) {
    gemm(Op::none, Op::transpose, R_, R_, C_, 1.0, X_[i], C_, X_[i], C_, 0.0, A_, R_);
    std::copy(A_, A_ + R_ * R_, B_);
    gemm(Op::none, Op::none, R_, R_, R_, kTriples[i][2], A_, R_, A_, R_, kTriples[i][1], B_, R_);
  }
  // Y <- S X + scale Y
  void product(const double* S, const double* X, double scale, double* Y) const {
    gemm(Op::none, Op::none, R_, C_, R_, 1.0, S, R_, X, C_, scale, Y, C_);
  }
  // f(index in [m, n], index in [R, C])
  template <class F>
  void for_each_element(F&& f) const {
    for (std::int64_t r = 0; r < m_; ++r) {
      for (std::int64_t c = 0; c < n_; ++c) f(r * n_ + c, m_ <= n_ ? r * n_ + c : c * m_ + r);
    }
  }
  void load(const T* Z, double* X) const {
    for_each_element([&](std::int64_t given, std::int64_t own) { X[own] = static_cast<double>(Z[given]); });
  }

  std::int64_t m_, n_, R_, C_;
  double norm_ = 0.0;
  std::int64_t size_ = 0;  // in elements of T
  double* X_[kSteps + 1];
  double *A_, *B_, *dB_, *dA_, *dX_, *dX_before_;
};

}  // namespace weft
