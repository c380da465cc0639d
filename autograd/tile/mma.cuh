// Tensor-core products of one warp (mma.sync, sm_80 and later) and the moves between shared memory and their fragments.
//
// c[16 x 8] += a[16 x 16] b[16 x 8], bf16 operands, fp32 sums. Lane l holds, with g = l / 4 and t = l % 4,
//   a: rows {g, g + 8}, columns {2t, 2t+1} and {2t + 8, 2t + 9}: a[0] = (g, low), a[1] = (g+8, low), a[2] = (g, high),
//   .. b: column g, rows {2t, 2t+1} in b[0] and {2t + 8, 2t + 9} in b[1] c: row g, columns {2t, 2t+1} in c[0], c[1];
//   row g + 8 in c[2], c[3].
#pragma once

#include "autograd/tile/numeric.cuh"

namespace weft::tile {

struct FragmentA {
  std::uint32_t x[4];
};
struct FragmentB {
  std::uint32_t x[2];
};
struct FragmentC {
  float x[4];
};

__device__ inline void mma(FragmentC& c, const FragmentA& a, const FragmentB& b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c.x[0]), "+f"(c.x[1]), "+f"(c.x[2]), "+f"(c.x[3])
      : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "r"(b.x[0]), "r"(b.x[1]));
}

// Two neighbouring accumulators [16 x 16] as the left operand of the next product, rounded to bf16.
__device__ inline FragmentA as_operand(const FragmentC& left, const FragmentC& right) {
  return {{pack(left.x[0], left.x[1]), pack(left.x[2], left.x[3]), pack(right.x[0], right.x[1]),
           pack(right.x[2], right.x[3])}};
}

// Four 8 x 8 bf16 matrices: lane l gives the address of row l % 8 of matrix l / 8 (16 bytes each, 16-byte aligned).
__device__ inline void ldmatrix4(std::uint32_t (&x)[4], std::uint32_t row_address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(row_address)
               : "memory");
}
// The same, each matrix transposed.
__device__ inline void ldmatrix4_transposed(std::uint32_t (&x)[4], std::uint32_t row_address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(row_address)
               : "memory");
}

// A bf16 matrix in shared memory, row-major, rows `ld` elements apart. Rows must start on 16 bytes; ld % 64 == 8 keeps
// the eight rows of an 8 x 8 matrix in different banks.
struct SharedMatrix {
  std::uint32_t base;
  int ld;

  __device__ SharedMatrix(const bf16* data, int leading) : base(shared_address(data)), ld(leading) {}
  __device__ std::uint32_t address(int row, int column) const {
    return base + static_cast<std::uint32_t>((row * ld + column) * 2);
  }
};

// a = m[row .. row+16, column .. column+16].
__device__ inline FragmentA load_a(const SharedMatrix& m, int row, int column) {
  const int lane = threadIdx.x % kWarp;
  FragmentA a;
  ldmatrix4(a.x, m.address(row + lane % 16, column + lane / 16 * 8));
  return a;
}
// a = transpose of m[row .. row+16, column .. column+16].
__device__ inline FragmentA load_a_transposed(const SharedMatrix& m, int row, int column) {
  const int lane = threadIdx.x % kWarp;
  FragmentA a;
  ldmatrix4_transposed(a.x, m.address(row + lane % 8 + lane / 16 * 8, column + lane / 8 % 2 * 8));
  return a;
}
// Two b operands that lie side by side in columns: b = m[row .. row+16, column .. column+8] and the next 8 columns.
__device__ inline void load_b(FragmentB (&b)[2], const SharedMatrix& m, int row, int column) {
  const int lane = threadIdx.x % kWarp;
  std::uint32_t x[4];
  ldmatrix4_transposed(x, m.address(row + lane % 16, column + lane / 16 * 8));
  b[0] = {{x[0], x[1]}};
  b[1] = {{x[2], x[3]}};
}
// The same of the transpose: b = transpose of m[row .. row+8, column .. column+16], and of the next 8 rows.
__device__ inline void load_b_transposed(FragmentB (&b)[2], const SharedMatrix& m, int row, int column) {
  const int lane = threadIdx.x % kWarp;
  std::uint32_t x[4];
  ldmatrix4(x, m.address(row + lane % 8 + lane / 16 * 8, column + lane / 8 % 2 * 8));
  b[0] = {{x[0], x[1]}};
  b[1] = {{x[2], x[3]}};
}

}  // namespace weft::tile
