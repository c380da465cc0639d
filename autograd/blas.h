// Matrix products on the CPU: OpenBLAS behind one row-major function, with a count of the work it did.
#pragma once

#include <cstdint>

namespace weft {

enum class Op : char { none, transpose };

// C[m,n] = alpha * op(A)[m,k] * op(B)[k,n] + beta * C. Row-major; ld* are row strides in elements. With beta = 0, C is
// written without being read. Threaded, except inside a threaded loop.
void gemm(Op op_a, Op op_b, std::int64_t m, std::int64_t n, std::int64_t k, float alpha, const float* a,
          std::int64_t lda, const float* b, std::int64_t ldb, float beta, float* c, std::int64_t ldc);
void gemm(Op op_a, Op op_b, std::int64_t m, std::int64_t n, std::int64_t k, double alpha, const double* a,
          std::int64_t lda, const double* b, std::int64_t ldb, double beta, double* c, std::int64_t ldc);

// What the calling thread has spent in gemm() outside threaded loops since it started.
struct GemmStats {
  double seconds = 0.0;
  double flops = 0.0;
};
GemmStats gemm_stats();

}  // namespace weft
