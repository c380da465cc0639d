// Decays inside a chunk that differ between key channels, on the CPU, for any chunked recurrence that has them.
//
// e^{G_ix - G_jx} must be split into a factor of row i and one of row j, and e^{-G} may overflow. Blocks are therefore
// halved again and again: rows I of a second half and rows J of the first half next to it take the boundary between
// them as reference,
//
//   sum_x A_ix B_jx e^{G_ix - G_jx} = (A_I e^{G_I - G_b}) (B_J e^{G_b - G_J})^T,   b = last row of J,
//
// so every factor is <= 1 for any gate, every pair i > j belongs to exactly one level, and the factors of a level
// follow from those of the level below by one product with a block's decay.
//
// n tokens of a chunk, D key channels, G_i inclusive sum of g.
#pragma once

#include "autograd/carver.h"
#include "autograd/vec_math.h"
#include "modules/families/triangular_products.h"

namespace weft {

template <class T>
class ChannelDecays {
 public:
  explicit ChannelDecays(std::int64_t channels) : D_(channels) {}
  // Room for chunks of C tokens.
  void carve(Carver<T>& carver, std::int64_t C) {
    from_entry_ = carver.take(C * D_);
    to_exit_ = carver.take(C * D_);
    sums_ = carver.take(C * D_);
    total_ = carver.take(D_);
    row_ = carver.take(D_);
  }

  // Doubles blocks from single rows to the whole chunk; g [n, D], rows ld_g apart. At each level and for each pair of
  // neighbours J = [first, middle), I = [middle, end), visit(first, middle, end) sees
  // from_entry() = e^{sum of g from middle to i, inclusive} on I and to_exit() = e^{sum of g after j, before middle} on
  // J. At the end they are e^{G_i} and e^{G_n - G_j} for the whole chunk, and total() is e^{G_n}.
  template <class Visit>
  void walk(const T* g, std::int64_t ld_g, std::int64_t n, Visit&& visit) {
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t x = 0; x < D_; ++x) {
        sums_[i * D_ + x] = g[i * ld_g + x];
        from_entry_[i * D_ + x] = fast_exp(g[i * ld_g + x]);
        to_exit_[i * D_ + x] = T(1);
      }
    }
    for (std::int64_t b = 1; b < n; b *= 2) {
      for (std::int64_t first = 0; first + b < n; first += 2 * b) {
        const std::int64_t middle = first + b;
        const std::int64_t end = std::min(n, middle + b);
        visit(first, middle, end);
        join(first, middle, end);
      }
    }
    for (std::int64_t x = 0; x < D_; ++x) total_[x] = fast_exp(sums_[x]);
  }

  const T* from_entry() const { return from_entry_; }  // [n, D]
  const T* to_exit() const { return to_exit_; }        // [n, D]
  const T* total() const { return total_; }            // [D]
  const T* log_total() const { return sums_; }         // [D]

  // Rows [begin, end) of `to` [n, D] = rows * factors; `rows` ld apart, the others contiguous.
  void multiply(const T* rows, std::int64_t ld, const T* factors, std::int64_t begin, std::int64_t end, T* to) const {
    for (std::int64_t i = begin; i < end; ++i) {
      for (std::int64_t x = 0; x < D_; ++x) to[i * D_ + x] = rows[i * ld + x] * factors[i * D_ + x];
    }
  }

 private:
  // Row `first` of sums_ holds the sum of g over the block that starts there. Block decays come from sums, not from
  // products of products, so that rounding does not grow with the length.
  void join(std::int64_t first, std::int64_t middle, std::int64_t end) {
    T* sum_J = sums_ + first * D_;
    const T* sum_I = sums_ + middle * D_;
    for (std::int64_t x = 0; x < D_; ++x) row_[x] = fast_exp(sum_J[x]);
    for (std::int64_t i = middle; i < end; ++i) {
      for (std::int64_t x = 0; x < D_; ++x) from_entry_[i * D_ + x] *= row_[x];
    }
    for (std::int64_t x = 0; x < D_; ++x) row_[x] = fast_exp(sum_I[x]);
    for (std::int64_t j = first; j < middle; ++j) {
      for (std::int64_t x = 0; x < D_; ++x) to_exit_[j * D_ + x] *= row_[x];
    }
    for (std::int64_t x = 0; x < D_; ++x) sum_J[x] += sum_I[x];
  }

  std::int64_t D_;
  T *from_entry_ = nullptr, *to_exit_ = nullptr;  // [C, D] decays from the start and to the end of a row's block
  T* sums_ = nullptr;                             // [C, D]
  T *total_ = nullptr, *row_ = nullptr;           // [D]
};

// Products of two neighbouring blocks: the BLAS from this many rows on, loops below.
inline constexpr std::int64_t kGemmBlock = 16;

// out[I, J] = scale A B^T; A [I, D], B [J, D] contiguous.
template <class T>
void block_scores(std::int64_t I, std::int64_t J, std::int64_t D, T scale, const T* A, const T* B, T* out,
                  std::int64_t ld) {
  if (J >= kGemmBlock) {
    gemm(Op::none, Op::transpose, I, J, D, scale, A, D, B, D, T(0), out, ld);
    return;
  }
  for (std::int64_t i = 0; i < I; ++i) {
    for (std::int64_t j = 0; j < J; ++j) out[i * ld + j] = scale * dot(A + i * D, B + j * D, D);
  }
}

// out[I, D] = W B; W [I, J], rows ld apart, B [J, D].
template <class T>
void block_product(std::int64_t I, std::int64_t J, std::int64_t D, const T* W, std::int64_t ld, const T* B, T* out) {
  if (J >= kGemmBlock) {
    gemm(Op::none, Op::none, I, D, J, T(1), W, ld, B, D, T(0), out, D);
    return;
  }
  std::fill(out, out + I * D, T(0));
  for (std::int64_t i = 0; i < I; ++i) {
    for (std::int64_t j = 0; j < J; ++j) {
      const T w = W[i * ld + j];
      for (std::int64_t x = 0; x < D; ++x) out[i * D + x] += w * B[j * D + x];
    }
  }
}

// out[J, D] = or += W^T A; W [I, J], rows ld apart, A [I, D].
template <class T>
void block_transposed_product(std::int64_t I, std::int64_t J, std::int64_t D, const T* W, std::int64_t ld, const T* A,
                              Write write, T* out) {
  if (J >= kGemmBlock) {
    gemm(Op::transpose, Op::none, J, D, I, T(1), W, ld, A, D, write == Write::overwrite ? T(0) : T(1), out, D);
    return;
  }
  if (write == Write::overwrite) std::fill(out, out + J * D, T(0));
  for (std::int64_t i = 0; i < I; ++i) {
    for (std::int64_t j = 0; j < J; ++j) {
      const T w = W[i * ld + j];
      for (std::int64_t x = 0; x < D; ++x) out[j * D + x] += w * A[i * D + x];
    }
  }
}

}  // namespace weft
