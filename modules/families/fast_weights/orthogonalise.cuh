// orthogonalise_cpu.h for a thread block: NS(Z) and its gradient, in fp64 as there.
//
// Z [m, n]; the iteration works on R = min(m, n) rows and C = max(m, n) columns, transposed if m > n.
#pragma once

#include "modules/families/block_products.cuh"

namespace weft {

inline constexpr int kOrthogonalSteps = 5;

// For matrices of d_m d_h elements, one after the other. Doubles in arrays of floats.
struct OrthogonaliserArrays {
  BlockArray X[kOrthogonalSteps + 1];
  BlockArray A, B, dA, dB, dX, dX_before;

  OrthogonaliserArrays() = default;
  OrthogonaliserArrays(std::int64_t d_m, std::int64_t d_h, bool backward, BlockLayout& layout) {
    const std::int64_t R = std::min(d_m, d_h), size = d_m * d_h;
    for (BlockArray* x : {&A, &B}) *x = layout.take(2 * R * R);
    for (BlockArray& x : X) x = layout.take(2 * size);
    if (!backward) return;
    for (BlockArray* x : {&dA, &dB}) *x = layout.take(2 * R * R);
    for (BlockArray* x : {&dX, &dX_before}) *x = layout.take(2 * size);
  }
};

class OrthogonaliserCuda {
 public:
  __device__ OrthogonaliserCuda(int m, int n, const OrthogonaliserArrays& arrays, const BlockMemory& memory)
      : m_(m), n_(n), R_(m < n ? m : n), C_(m < n ? n : m), a_(arrays), memory_(memory) {}

  // Computes NS(Z) and keeps what gradient() needs; `to` [m, n] may be null.
  __device__ __noinline__ void run(const float* Z, float* to) {
    double* X = at(a_.X[0]);
    for_each_element([&](int given, int own) { X[own] = static_cast<double>(Z[given]); });
    norm_ = sqrt(block_sum(R_ * C_, [&](int i) { return X[i] * X[i]; }));
    block_for(R_ * C_, [&](int i) { X[i] /= norm_ + kEps; });
    for (int i = 0; i < kOrthogonalSteps; ++i) {
      const double *from = at(a_.X[i]), *B = at(a_.B);
      double* next = at(a_.X[i + 1]);
      polynomial(i);
      block_for(R_ * C_, [&](int e) { next[e] = from[e]; });
      block_product(R_, C_, R_, 1.0, view(B, R_), view(from, C_), coefficient(i, 0), next, C_);
    }
    if (to == nullptr) return;
    X = at(a_.X[kOrthogonalSteps]);
    for_each_element([&](int given, int own) { to[given] = static_cast<float>(X[own]); });
  }

  // dZ += the gradient of Z, from that of NS(Z); after run() with the same Z.
  __device__ __noinline__ void gradient(const float* Z, const float* dD, float* dZ) {
    double *dX = at(a_.dX), *before = at(a_.dX_before), *dA = at(a_.dA), *dB = at(a_.dB);
    const double *A = at(a_.A), *B = at(a_.B);
    for_each_element([&](int given, int own) { dX[own] = static_cast<double>(dD[given]); });
    for (int i = kOrthogonalSteps - 1; i >= 0; --i) {
      const double alpha = coefficient(i, 0), beta = coefficient(i, 1), gamma = coefficient(i, 2);
      const double* X = at(a_.X[i]);
      polynomial(i);
      block_product(R_, R_, C_, 1.0, view<double>(dX, C_), transposed(X, C_), 0.0, dB, R_);
      block_for(R_ * R_, [&](int e) { dA[e] = dB[e]; });
      block_product(R_, R_, R_, gamma, view<double>(dB, R_), view(A, R_), beta, dA, R_);
      block_product(R_, R_, R_, gamma, view(A, R_), view<double>(dB, R_), 1.0, dA, R_);
      block_elements(R_, R_, [&](int r, int c) {
        if (c > r) return;
        const double sum = dA[r * R_ + c] + dA[c * R_ + r];
        dA[r * R_ + c] = dA[c * R_ + r] = sum;
      });
      block_for(R_ * C_, [&](int e) { before[e] = dX[e]; });
      block_product(R_, C_, R_, 1.0, view(B, R_), view<double>(dX, C_), alpha, before, C_);
      block_product(R_, C_, R_, 1.0, view<double>(dA, R_), view(X, C_), 1.0, before, C_);
      double* swapped = dX;
      dX = before;
      before = swapped;
    }
    // X_0 = Z / (|Z| + eps)
    const double* X = at(a_.X[0]);
    const double r = norm_ + kEps;
    const double inner = block_sum(R_ * C_, [&](int e) { return dX[e] * X[e]; }) * r;
    const double along = norm_ > 0.0 ? inner / (r * r * norm_) : 0.0;
    for_each_element([&](int given, int own) {
      dZ[given] += static_cast<float>(dX[own] / r - along * static_cast<double>(Z[given]));
    });
  }

 private:
  static constexpr double kEps = 1e-7;

  // alpha, beta, gamma of a step, as in orthogonalise_cpu.h.
  __device__ static double coefficient(int step, int which) {
    constexpr double kTriples[kOrthogonalSteps][3] = {{4.0848, -6.8946, 2.9270},
                                                      {3.9505, -6.3029, 2.6377},
                                                      {3.7418, -5.5913, 2.3037},
                                                      {2.8769, -3.1427, 1.2046},
                                                      {2.8366, -3.0525, 1.2012}};
    return kTriples[step][which];
  }

  // A = X X^T and B = beta A + gamma A^2 of step i.
  __device__ void polynomial(int i) const {
    const double* X = at(a_.X[i]);
    double *A = at(a_.A), *B = at(a_.B);
    block_product(R_, R_, C_, 1.0, view(X, C_), transposed(X, C_), 0.0, A, R_);
    block_for(R_ * R_, [&](int e) { B[e] = A[e]; });
    block_product(R_, R_, R_, coefficient(i, 2), view<double>(A, R_), view<double>(A, R_), coefficient(i, 1), B, R_);
  }
  // f(index in [m, n], index in [R, C])
  template <class F>
  __device__ void for_each_element(F&& f) const {
    block_elements(m_, n_, [&](int r, int c) { f(r * n_ + c, m_ <= n_ ? r * n_ + c : c * m_ + r); });
  }
  __device__ double* at(BlockArray x) const { return reinterpret_cast<double*>(memory_[x]); }

  int m_, n_, R_, C_;
  double norm_ = 0.0;
  const OrthogonaliserArrays& a_;
  const BlockMemory& memory_;
};

}  // namespace weft
