// Products of the masked, lower-triangular blocks that every chunked recurrence has, on the CPU.
#pragma once

#include <algorithm>

#include "autograd/blas.h"
#include "autograd/dispatch.h"

namespace weft {

// target[i][0..width) (rows ld apart) = or += tile[i][0..width), tile contiguous.
template <class T>
void store_rows(const T* tile, std::int64_t rows, std::int64_t width, T* target, std::int64_t ld, Write write) {
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t x = 0; x < width; ++x) store(target[i * ld + x], tile[i * width + x], write);
  }
}

template <class T>
T dot(const T* a, const T* b, std::int64_t n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

// Masked products of a chunk skip what lies right of the diagonal, by blocks of rows:
// out[n, width] (+)= lower(A) B, A [n, C] with valid entries up to the end of each row block, B [n, width].
template <class T>
void lower_product(std::int64_t n, std::int64_t C, std::int64_t row_block, const T* A, const T* B, std::int64_t ldb,
                   std::int64_t width, T beta, T* out, std::int64_t ld_out) {
  for (std::int64_t r = 0; r < n; r += row_block) {
    const std::int64_t end = std::min(n, r + row_block);
    gemm(Op::none, Op::none, end - r, width, end, T(1), A + r * C, C, B, ldb, beta, out + r * ld_out, ld_out);
  }
}

// out[n, width] (+)= lower(A)^T B.
template <class T>
void lower_transposed_product(std::int64_t n, std::int64_t C, std::int64_t row_block, const T* A, const T* B,
                              std::int64_t ldb, std::int64_t width, T beta, T* out, std::int64_t ld_out) {
  for (std::int64_t c = 0; c < n; c += row_block) {
    const std::int64_t end = std::min(n, c + row_block);
    gemm(Op::transpose, Op::none, end - c, width, n - c, T(1), A + c * C + c, C, B + c * ldb, ldb, beta,
         out + c * ld_out, ld_out);
  }
}

// out[n, C] = alpha lower(A B^T), A, B [n, width]; entries right of the diagonal within a row block are written too.
template <class T>
void lower_scores(std::int64_t n, std::int64_t C, std::int64_t row_block, T alpha, const T* A, std::int64_t lda,
                  const T* B, std::int64_t ldb, std::int64_t width, T* out) {
  for (std::int64_t r = 0; r < n; r += row_block) {
    const std::int64_t end = std::min(n, r + row_block);
    gemm(Op::none, Op::transpose, end - r, end, width, alpha, A + r * lda, lda, B, ldb, T(0), out + r * C, C);
  }
}

}  // namespace weft
