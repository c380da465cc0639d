// CPU kernels of l2_norm.h, templated on float/double.
#pragma once

#include <cmath>

#include "autograd/map_cpu.h"
#include "autograd/ops/l2_norm/l2_norm.h"

namespace weft {

template <class T>
void l2_norm_forward_cpu(const L2NormForward& a) {
  const auto* x = static_cast<const T*>(a.x);
  auto* y = static_cast<T*>(a.y);
  auto* rnorm = static_cast<T*>(a.rnorm);
  const std::int64_t D = a.D;
  parallel_blocks(a.R, rows_per_block(D), [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const T* row = x + i * D;
      T squares = 0;
#pragma omp simd reduction(+ : squares)
      for (std::int64_t c = 0; c < D; ++c) squares += row[c] * row[c];
      const T r = T(1) / std::sqrt(squares + static_cast<T>(a.eps));
      rnorm[i] = r;
      T* y_row = y + i * D;
#pragma omp simd
      for (std::int64_t c = 0; c < D; ++c) y_row[c] = row[c] * r;
    }
  });
}

template <class T>
void l2_norm_backward_cpu(const L2NormBackward& a) {
  const auto* x = static_cast<const T*>(a.x);
  const auto* rnorm = static_cast<const T*>(a.rnorm);
  const auto* dy = static_cast<const T*>(a.dy);
  auto* dx = static_cast<T*>(a.dx);
  const std::int64_t D = a.D;
  parallel_blocks(a.R, rows_per_block(D), [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const T* x_row = x + i * D;
      const T* dy_row = dy + i * D;
      T dot = 0;
#pragma omp simd reduction(+ : dot)
      for (std::int64_t c = 0; c < D; ++c) dot += x_row[c] * dy_row[c];
      const T r = rnorm[i];
      const T k = dot * r * r;
      map_serial_cpu<T, 2, 1>(D, {x_row, dy_row}, {{{dx + i * D, a.write_dx}}},
                              [r, k](T x_c, T dy_c, T& dx_c) { dx_c = r * (dy_c - x_c * k); });
    }
  });
}

}  // namespace weft
