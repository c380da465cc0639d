// Matrix products on the GPU: cuBLASLt behind one row-major function.
//
// bf16 or f32 operands, fp32 accumulation; f32 operands are multiplied exactly, never as tf32. A problem always runs
// the same algorithm (the heuristic's first that sums in a fixed order), so equal inputs give equal bits. Capturable.
#pragma once

#include <cstddef>
#include <cstdint>

#include "autograd/blas.h"
#include "autograd/dispatch.h"
#include "autograd/dtype.h"

namespace weft {

// C[m,n] = alpha * op_a(A)[m,k] op_b(B)[k,n] + beta * addend[m,n] + bias[n], `batch` times. Row-major: ld* are row
// strides and stride_* the distances between the matrices of a batch, in elements. With beta = 0 nothing is read.
struct Matmul {
  Op op_a = Op::none, op_b = Op::none;
  std::int64_t m = 0, n = 0, k = 0;
  DType operands = DType::bf16;  // of A and B
  DType output = DType::bf16;    // of C, addend and bias: f32, or bf16 with bf16 operands
  const void* a = nullptr;
  const void* b = nullptr;
  void* c = nullptr;
  std::int64_t lda = 0, ldb = 0, ldc = 0;
  float alpha = 1.0f;
  float beta = 0.0f;
  const void* addend = nullptr;  // null: C itself; laid out like C
  const void* bias = nullptr;
  std::int64_t batch = 1;
  std::int64_t stride_a = 0, stride_b = 0, stride_c = 0;
};

// What each call needs of Launch::workspace, which is the same for all.
inline constexpr std::size_t kMatmulWorkspace = std::size_t{32} << 20;

void matmul(const Matmul& problem, const Launch& launch);

inline float beta_of(Write write) {
  return write == Write::accumulate ? 1.0f : 0.0f;
}

}  // namespace weft
