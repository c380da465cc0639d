// CPU kernels of rms_norm.h, templated on float/double.
#pragma once

#include <cmath>

#include "autograd/block_sum.h"
#include "autograd/map_cpu.h"
#include "autograd/ops/rms_norm/rms_norm.h"

namespace weft {

template <class T>
void rms_norm_forward_cpu(const RmsNormForward& a) {
  const auto* x = static_cast<const T*>(a.x);
  const auto* residual = static_cast<const T*>(a.residual);
  const auto* weight = static_cast<const T*>(a.weight);
  auto* sum = static_cast<T*>(a.sum);
  auto* y = static_cast<T*>(a.y);
  auto* rstd = static_cast<T*>(a.rstd);
  const std::int64_t D = a.D;
  parallel_blocks(a.R, rows_per_block(D), [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const T* row = x + i * D;
      if (residual != nullptr) {
        T* sum_row = sum + i * D;
        const T* residual_row = residual + i * D;
#pragma omp simd
        for (std::int64_t c = 0; c < D; ++c) sum_row[c] = row[c] + residual_row[c];
        row = sum_row;
      }
      T squares = 0;
#pragma omp simd reduction(+ : squares)
      for (std::int64_t c = 0; c < D; ++c) squares += row[c] * row[c];
      const T r = T(1) / std::sqrt(squares / static_cast<T>(D) + static_cast<T>(a.eps));
      rstd[i] = r;
      const T* w = weight + (i % a.H) * D;
      T* y_row = y + i * D;
#pragma omp simd
      for (std::int64_t c = 0; c < D; ++c) y_row[c] = w[c] * row[c] * r;
    }
  });
}

// dx = r (dy w - xhat mean(xhat dy w)),  dw = sum over rows of dy xhat,  xhat = x r.
template <class T>
void rms_norm_backward_cpu(const RmsNormBackward& a, T* lines) {
  const auto* x = static_cast<const T*>(a.x);
  const auto* weight = static_cast<const T*>(a.weight);
  const auto* rstd = static_cast<const T*>(a.rstd);
  const auto* dy = static_cast<const T*>(a.dy);
  const auto* dsum = static_cast<const T*>(a.dsum);
  auto* dx = static_cast<T*>(a.dx);
  auto* dweight = static_cast<T*>(a.dweight);
  const std::int64_t D = a.D;
  const std::int64_t HD = a.H * D;
  const RowBlocks blocks = row_blocks(a.R, D);
  parallel_blocks(a.R, blocks.rows, [&](std::int64_t b, std::int64_t begin, std::int64_t end) {
    T* line = dweight != nullptr ? lines + b * HD : nullptr;
    if (line != nullptr) std::fill(line, line + HD, T(0));
    for (std::int64_t i = begin; i < end; ++i) {
      const T* x_row = x + i * D;
      const T* dy_row = dy + i * D;
      const T* w = weight + (i % a.H) * D;
      const T r = rstd[i];
      if (dx != nullptr) {
        T dot = 0;
#pragma omp simd reduction(+ : dot)
        for (std::int64_t c = 0; c < D; ++c) dot += x_row[c] * dy_row[c] * w[c];
        const T k = dot * r * r / static_cast<T>(D);
        const std::array<MapOutput<T>, 1> dx_row{{{dx + i * D, a.write_dx}}};
        if (dsum != nullptr) {
          map_serial_cpu<T, 4, 1>(
              D, {x_row, dy_row, w, dsum + i * D}, dx_row,
              [r, k](T x_c, T dy_c, T w_c, T dsum_c, T& dx_c) { dx_c = r * (dy_c * w_c - x_c * k) + dsum_c; });
        } else {
          map_serial_cpu<T, 3, 1>(D, {x_row, dy_row, w}, dx_row,
                                  [r, k](T x_c, T dy_c, T w_c, T& dx_c) { dx_c = r * (dy_c * w_c - x_c * k); });
        }
      }
      if (line == nullptr) continue;
      T* dw = line + (i % a.H) * D;
#pragma omp simd
      for (std::int64_t c = 0; c < D; ++c) dw[c] += dy_row[c] * x_row[c] * r;
    }
  });
  if (dweight != nullptr) add_lines(lines, blocks.count, HD, dweight, a.write_dweight);
}

}  // namespace weft
