// CPU kernel of rope.h, templated on float/double.
#pragma once

#include "autograd/ops/rope/rope.h"
#include "autograd/parallel_for.h"

namespace weft {

template <class T, Write kWrite>
void rotate_cpu(const Rotation& a) {
  const auto* x = static_cast<const T*>(a.x);
  const auto* cos = static_cast<const T*>(a.cos);
  const auto* sin = static_cast<const T*>(a.sin);
  auto* y = static_cast<T*>(a.y);
  const std::int64_t half = a.D_r / 2;
  const T direction = static_cast<T>(a.direction);
  parallel_blocks(a.T, rows_per_block(a.H * a.D), [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const T* cos_row = cos + t * half;
      const T* sin_row = sin + t * half;
      for (std::int64_t h = 0; h < a.H; ++h) {
        const T* from = x + (t * a.H + h) * a.D;
        T* to = y + (t * a.H + h) * a.D;
        // Each iteration reads its pair before it writes it, so y may be x.
#pragma omp simd
        for (std::int64_t i = 0; i < half; ++i) {
          const T c = cos_row[i];
          const T s = direction * sin_row[i];
          const T first = from[i];
          const T second = from[i + half];
          store(to[i], first * c - second * s, kWrite);
          store(to[i + half], first * s + second * c, kWrite);
        }
#pragma omp simd
        for (std::int64_t i = a.D_r; i < a.D; ++i) store(to[i], from[i], kWrite);
      }
    }
  });
}

}  // namespace weft
