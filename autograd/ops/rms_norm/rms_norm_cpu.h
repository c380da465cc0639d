// CPU kernels of rms_norm.h, templated on float/double.
#pragma once

#include <cmath>

#include "autograd/ops/rms_norm/rms_norm.h"
#include "autograd/parallel_for.h"

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
        for (std::int64_t c = 0; c < D; ++c) sum[i * D + c] = row[c] + residual[i * D + c];
        row = sum + i * D;
      }
      T squares = 0;
#pragma omp simd reduction(+ : squares)
      for (std::int64_t c = 0; c < D; ++c) squares += row[c] * row[c];
      const T r = T(1) / std::sqrt(squares / static_cast<T>(D) + static_cast<T>(a.eps));
      rstd[i] = r;
      const T* w = weight + (i % a.H) * D;
      for (std::int64_t c = 0; c < D; ++c) y[i * D + c] = w[c] * row[c] * r;
    }
  });
}

// dx = r (dy w - xhat mean(xhat dy w)),  dw = sum over rows of dy xhat,  xhat = x r.
// Weight gradients are summed per block of rows into the workspace, then over blocks in order.
template <class T>
void rms_norm_backward_cpu(const RmsNormBackward& a, T* block_dweight) {
  const auto* x = static_cast<const T*>(a.x);
  const auto* weight = static_cast<const T*>(a.weight);
  const auto* rstd = static_cast<const T*>(a.rstd);
  const auto* dy = static_cast<const T*>(a.dy);
  const auto* dsum = static_cast<const T*>(a.dsum);
  auto* dx = static_cast<T*>(a.dx);
  auto* dweight = static_cast<T*>(a.dweight);
  const std::int64_t D = a.D;
  const std::int64_t HD = a.H * D;
  const std::int64_t block = rows_per_block(D);
  parallel_blocks(a.R, block, [&](std::int64_t b, std::int64_t begin, std::int64_t end) {
    T* dw_block = block_dweight + b * HD;
    if (dweight != nullptr) std::fill(dw_block, dw_block + HD, T(0));
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
        T* dx_row = dx + i * D;
        for (std::int64_t c = 0; c < D; ++c) {
          T d = r * (dy_row[c] * w[c] - x_row[c] * k);
          if (dsum != nullptr) d += dsum[i * D + c];
          store(dx_row[c], d, a.write_dx);
        }
      }
      if (dweight != nullptr) {
        T* dw = dw_block + (i % a.H) * D;
        for (std::int64_t c = 0; c < D; ++c) dw[c] += dy_row[c] * x_row[c] * r;
      }
    }
  });
  if (dweight == nullptr) return;
  const std::int64_t blocks = block_count(a.R, block);
  for (std::int64_t c = 0; c < HD; ++c) {
    T total = 0;
    for (std::int64_t b = 0; b < blocks; ++b) total += block_dweight[b * HD + c];
    store(dweight[c], total, a.write_dweight);
  }
}

}  // namespace weft
