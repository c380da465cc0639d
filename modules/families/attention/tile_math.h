// Vectors of 32 bytes and the small matrix products of attention tiles on the CPU, where a library call would cost as
// much as its work. Every element of a product is one chain of fused multiply-adds in the order of k, so its bits
// depend neither on the tile's extents nor on its place in the tile.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace weft::tile {

inline constexpr std::int64_t kVectorBytes = 32;

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vector = typename VectorOf<T>::type;
template <class T>
inline constexpr std::int64_t kLanes = kVectorBytes / static_cast<std::int64_t>(sizeof(T));

// Extents that vectors run along are padded to this.
inline constexpr std::int64_t kPad = 16;
constexpr std::int64_t padded(std::int64_t n) {
  return (n + kPad - 1) / kPad * kPad;
}

template <class T>
[[gnu::always_inline]] inline Vector<T> load(const T* p) {
  Vector<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
[[gnu::always_inline]] inline void store(T* p, Vector<T> v) {
  std::memcpy(p, &v, sizeof v);
}
template <class T>
[[gnu::always_inline]] inline Vector<T> broadcast(T x) {
  return Vector<T>{} + x;
}

// Eight rows of eight floats at `from`, transposed and multiplied by `scale`, to rows `ld` apart.
inline void transpose_block(const float* const* from, float scale, float* to, std::int64_t ld) {
  using V = Vector<float>;
  V a[8], b[8];
  for (int i = 0; i < 8; ++i) a[i] = load(from[i]) * scale;
  for (int i = 0; i < 8; i += 2) {
    b[i] = __builtin_shufflevector(a[i], a[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    b[i + 1] = __builtin_shufflevector(a[i], a[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int j = 0; j < 2; ++j) {
      a[i + 2 * j] = __builtin_shufflevector(b[i + j], b[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
      a[i + 2 * j + 1] = __builtin_shufflevector(b[i + j], b[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
  }
  for (int i = 0; i < 4; ++i) {
    store(to + i * ld, V(__builtin_shufflevector(a[i], a[i + 4], 0, 1, 2, 3, 8, 9, 10, 11)));
    store(to + (i + 4) * ld, V(__builtin_shufflevector(a[i], a[i + 4], 4, 5, 6, 7, 12, 13, 14, 15)));
  }
}
inline void transpose_block(const double* const* from, double scale, double* to, std::int64_t ld) {
  for (int c = 0; c < 8; ++c) {
    for (int i = 0; i < 8; ++i) to[c * ld + i] = from[i][c] * scale;
  }
}

// 2^x for x <= 1: exactly 1 at 0, exactly 0 below -126 (so -infinity gives 0), NaN for NaN.
[[gnu::always_inline]] inline Vector<float> exp2(Vector<float> x) {
  typedef std::int32_t Bits __attribute__((vector_size(kVectorBytes)));
  constexpr float kLowest = -126.0f;
  // Adding it rounds to an integer and leaves that integer plus the exponent bias in the low bits.
  constexpr float kRound = 12582912.0f + 127.0f;
  const Vector<float> clamped = x < kLowest ? Vector<float>{} + kLowest : x;
  const Vector<float> rounded = clamped + kRound;
  const Vector<float> f = clamped - (rounded - kRound);
  // Minimax polynomial of 2^f on [-1/2, 1/2], relative error 2.6e-9.
  Vector<float> p = Vector<float>{} + 1.55946721e-4f;
  p = p * f + 1.340664359e-3f;
  p = p * f + 9.617692993e-3f;
  p = p * f + 5.550310552e-2f;
  p = p * f + 2.402265278e-1f;
  p = p * f + 6.93147215e-1f;
  p = p * f + 1.0f;
  Bits exponent;
  std::memcpy(&exponent, &rounded, sizeof exponent);
  exponent <<= 23;
  Vector<float> power;
  std::memcpy(&power, &exponent, sizeof power);
  return x < kLowest ? Vector<float>{} : p * power;
}
inline Vector<double> exp2(Vector<double> x) {
  Vector<double> y;
  for (int i = 0; i < kLanes<double>; ++i) y[i] = std::exp2(x[i]);
  return y;
}

// How the left operand lies: element (m, k) at a[m lda + k], or at a[k lda + m].
enum class Left { rows, columns };

template <class T, int M, Left kLeft>
[[gnu::always_inline]] inline void block(std::int64_t k, const T* a, std::int64_t lda, const T* b, std::int64_t ldb,
                                         T* c, std::int64_t ldc, bool accumulate) {
  constexpr std::int64_t L = kLanes<T>;
  Vector<T> sum[M][2];
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m) {
    sum[m][0] = accumulate ? load(c + m * ldc) : Vector<T>{};
    sum[m][1] = accumulate ? load(c + m * ldc + L) : Vector<T>{};
  }
  for (std::int64_t i = 0; i < k; ++i) {
    const Vector<T> b0 = load(b + i * ldb);
    const Vector<T> b1 = load(b + i * ldb + L);
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) {
      const Vector<T> x = broadcast(kLeft == Left::rows ? a[m * lda + i] : a[i * lda + m]);
      sum[m][0] += x * b0;
      sum[m][1] += x * b1;
    }
  }
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m) {
    store(c + m * ldc, sum[m][0]);
    store(c + m * ldc + L, sum[m][1]);
  }
}

// Rows of the result that one block computes.
inline constexpr std::int64_t kBlockRows = 6;

template <class T, int M, Left kLeft>
[[gnu::noinline]] void row_block(std::int64_t n, std::int64_t k, const T* a, std::int64_t lda, const T* b,
                                 std::int64_t ldb, T* c, std::int64_t ldc, bool accumulate) {
  for (std::int64_t j = 0; j < n; j += 2 * kLanes<T>) {
    block<T, M, kLeft>(k, a, lda, b + j, ldb, c + j, ldc, accumulate);
  }
}

// C[m, n] = A[m, k] B[k, n], or C += A B, for m <= kBlockRows; n a multiple of kPad.
template <Left kLeft, class T>
inline void product_rows(std::int64_t m, std::int64_t n, std::int64_t k, const T* a, std::int64_t lda, const T* b,
                         std::int64_t ldb, T* c, std::int64_t ldc, bool accumulate) {
  switch (m) {
    case 1:
      return row_block<T, 1, kLeft>(n, k, a, lda, b, ldb, c, ldc, accumulate);
    case 2:
      return row_block<T, 2, kLeft>(n, k, a, lda, b, ldb, c, ldc, accumulate);
    case 3:
      return row_block<T, 3, kLeft>(n, k, a, lda, b, ldb, c, ldc, accumulate);
    case 4:
      return row_block<T, 4, kLeft>(n, k, a, lda, b, ldb, c, ldc, accumulate);
    case 5:
      return row_block<T, 5, kLeft>(n, k, a, lda, b, ldb, c, ldc, accumulate);
    case 6:
      return row_block<T, 6, kLeft>(n, k, a, lda, b, ldb, c, ldc, accumulate);
    default:
      return;
  }
}

// The same for any m.
template <Left kLeft, class T>
inline void product(std::int64_t m, std::int64_t n, std::int64_t k, const T* a, std::int64_t lda, const T* b,
                    std::int64_t ldb, T* c, std::int64_t ldc, bool accumulate) {
  for (std::int64_t i = 0; i < m; i += kBlockRows) {
    const std::int64_t rows = m - i < kBlockRows ? m - i : kBlockRows;
    const T* a_block = kLeft == Left::rows ? a + i * lda : a + i;
    product_rows<kLeft>(rows, n, k, a_block, lda, b, ldb, c + i * ldc, ldc, accumulate);
  }
}

}  // namespace weft::tile
