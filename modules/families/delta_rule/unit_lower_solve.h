// The two triangular systems of a chunk, by blocks of rows: products between blocks, substitution inside them.
//
// n equations, C columns of A, w right-hand sides. A is strictly lower triangular; what lies right of the diagonal is
// not read. Tiles have rows ld apart, betas ld_beta.
#pragma once

#include "modules/families/delta_rule/delta_rule_policy.h"
#include "modules/families/triangular_products.h"

namespace weft {

namespace detail {

// to[0..w) -= factor * from[0..w)
template <class T>
void subtract_row(T factor, const T* from, std::int64_t w, T* to) {
#pragma omp simd
  for (std::int64_t y = 0; y < w; ++y) to[y] -= factor * from[y];
}

// to[0..w) = factor * from[0..w)
template <class T>
void scale_row(T factor, const T* from, std::int64_t w, T* to) {
#pragma omp simd
  for (std::int64_t y = 0; y < w; ++y) to[y] = factor * from[y];
}

}  // namespace detail

// (I + diag(beta) A) U = diag(beta) W_0, W holding W_0 on entry and U = diag(beta) W on return:
//   W_i = W_0i - sum_(j<i) A_ij U_j,  U_i = beta_i W_i.
template <class T>
void solve_forwards(std::int64_t n, std::int64_t C, const T* A, const T* beta, std::int64_t ld_beta, std::int64_t w,
                    std::int64_t ld, T* W, T* U) {
  constexpr std::int64_t kRows = DeltaRuleCpuPolicy::kRowBlock;
  for (std::int64_t first = 0; first < n; first += kRows) {
    const std::int64_t end = std::min(n, first + kRows);
    if (first > 0) {
      gemm(Op::none, Op::none, end - first, w, first, T(-1), A + first * C, C, U, ld, T(1), W + first * ld, ld);
    }
    for (std::int64_t i = first; i < end; ++i) {
      for (std::int64_t j = first; j < i; ++j) detail::subtract_row(A[i * C + j], U + j * ld, w, W + i * ld);
      detail::scale_row(beta[i * ld_beta], W + i * ld, w, U + i * ld);
    }
  }
}

// (I + diag(beta) A)^T Y = Y_0, Y holding Y_0 on entry, and dR = diag(beta) Y:
//   Y_j = Y_0j - sum_(i>j) A_ij dR_i.
template <class T>
void solve_backwards(std::int64_t n, std::int64_t C, const T* A, const T* beta, std::int64_t ld_beta, std::int64_t w,
                     std::int64_t ld, T* Y, T* dR) {
  constexpr std::int64_t kRows = DeltaRuleCpuPolicy::kRowBlock;
  for (std::int64_t first = (n - 1) / kRows * kRows; first >= 0; first -= kRows) {
    const std::int64_t end = std::min(n, first + kRows);
    if (end < n) {
      gemm(Op::transpose, Op::none, end - first, w, n - end, T(-1), A + end * C + first, C, dR + end * ld, ld, T(1),
           Y + first * ld, ld);
    }
    for (std::int64_t j = end - 1; j >= first; --j) {
      for (std::int64_t i = j + 1; i < end; ++i) detail::subtract_row(A[i * C + j], dR + i * ld, w, Y + j * ld);
      detail::scale_row(beta[j * ld_beta], Y + j * ld, w, dR + j * ld);
    }
  }
}

}  // namespace weft
