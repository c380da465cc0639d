// One chunk of one head as the CPU kernels see it.
#pragma once

#include <cmath>

#include "autograd/blas.h"
#include "autograd/vec_math.h"
#include "modules/families/gated_linear/gated_linear.h"

namespace weft {

// n tokens; rows of q, k are ld_k elements apart, those of v, o, d_o ld_v.
template <class T>
struct ChunkTile {
  ChunkTile(const GatedLinearProblem& p, const Chunk& chunk, std::int64_t head)
      : n(chunk.end - chunk.begin),
        h(head),
        ld_k(p.H * p.d_k),
        ld_v(p.H * p.d_v),
        key_offset((chunk.begin * p.H + head) * p.d_k),
        value_offset((chunk.begin * p.H + head) * p.d_v),
        gate_offset(chunk.begin * p.H + head),
        q(static_cast<const T*>(p.q) + key_offset),
        k(static_cast<const T*>(p.k) + key_offset),
        v(static_cast<const T*>(p.v) + value_offset) {}

  std::int64_t n, h, ld_k, ld_v;
  std::int64_t key_offset, value_offset, gate_offset;  // first element in [T,H,d_k], [T,H,d_v], [T,H]
  const T *q, *k, *v;
};

// Where the gradients of one chunk go; rows as in the tile. Null: not wanted.
template <class T>
struct ChunkGradients {
  ChunkGradients(const GatedLinearBackward& a, const ChunkTile<T>& tile)
      : d_o(static_cast<const T*>(a.d_o) + tile.value_offset),
        dq(at(a.dq, tile.key_offset)),
        dk(at(a.dk, tile.key_offset)),
        dv(at(a.dv, tile.value_offset)),
        dg(at(a.dg, a.kind == DecayKind::vector ? tile.key_offset : tile.gate_offset)),
        write_dq(a.write_dq),
        write_dk(a.write_dk),
        write_dv(a.write_dv),
        write_dg(a.write_dg) {}

  const T* d_o;
  T *dq, *dk, *dv, *dg;
  Write write_dq, write_dk, write_dv, write_dg;

 private:
  static T* at(void* base, std::int64_t offset) { return base == nullptr ? nullptr : static_cast<T*>(base) + offset; }
};

// Hands out pieces of a buffer, each on a cache line; with a null base it only counts.
template <class T>
class Carver {
 public:
  explicit Carver(T* base) : base_(base) {}
  T* take(std::int64_t elements) {
    constexpr std::int64_t kLine = 64 / static_cast<std::int64_t>(sizeof(T));
    T* piece = base_ == nullptr ? nullptr : base_ + used_;
    used_ += (elements + kLine - 1) / kLine * kLine;
    return piece;
  }
  std::int64_t used() const { return used_; }

 private:
  T* base_;
  std::int64_t used_ = 0;
};

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
