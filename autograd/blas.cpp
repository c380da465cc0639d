#include "autograd/blas.h"

#include <cblas.h>
#include <chrono>
#include <omp.h>

#include "autograd/check.h"

namespace weft {
namespace {

thread_local GemmStats stats;

CBLAS_TRANSPOSE to_cblas(Op op) {
  return op == Op::none ? CblasNoTrans : CblasTrans;
}

blasint to_blasint(std::int64_t n) {
  WEFT_CHECK(n <= INT32_MAX, "matrix extent {} exceeds what the BLAS can address", n);
  return static_cast<blasint>(n);
}

template <class F>
void timed(std::int64_t m, std::int64_t n, std::int64_t k, F&& call) {
  if (m == 0 || n == 0) return;
  if (omp_in_parallel()) return call();
  const auto start = std::chrono::steady_clock::now();
  call();
  stats.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  stats.flops += 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
}

}  // namespace

void gemm(Op op_a, Op op_b, std::int64_t m, std::int64_t n, std::int64_t k, float alpha, const float* a,
          std::int64_t lda, const float* b, std::int64_t ldb, float beta, float* c, std::int64_t ldc) {
  timed(m, n, k, [&] {
    cblas_sgemm(CblasRowMajor, to_cblas(op_a), to_cblas(op_b), to_blasint(m), to_blasint(n), to_blasint(k), alpha, a,
                to_blasint(lda), b, to_blasint(ldb), beta, c, to_blasint(ldc));
  });
}

void gemm(Op op_a, Op op_b, std::int64_t m, std::int64_t n, std::int64_t k, double alpha, const double* a,
          std::int64_t lda, const double* b, std::int64_t ldb, double beta, double* c, std::int64_t ldc) {
  timed(m, n, k, [&] {
    cblas_dgemm(CblasRowMajor, to_cblas(op_a), to_cblas(op_b), to_blasint(m), to_blasint(n), to_blasint(k), alpha, a,
                to_blasint(lda), b, to_blasint(ldb), beta, c, to_blasint(ldc));
  });
}

GemmStats gemm_stats() {
  return stats;
}

}  // namespace weft
