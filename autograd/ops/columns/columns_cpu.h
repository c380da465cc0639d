// CPU kernels of columns.h, templated on float/double.
#pragma once

#include <algorithm>

#include "autograd/ops/columns/columns.h"
#include "autograd/parallel_for.h"

namespace weft {

template <class T>
void store_row(const T* from, std::int64_t n, T* to, Write write) {
  if (write == Write::overwrite) {
    std::copy(from, from + n, to);
    return;
  }
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) to[i] += from[i];
}

// to[n] = (or +=) the sum of H rows that are `stride` apart.
template <class T>
void store_sum_of_heads(const T* from, std::int64_t H, std::int64_t stride, std::int64_t n, T* to, Write write) {
  if (H == 1) {
    store_row(from, n, to, write);
    return;
  }
  constexpr std::int64_t kStrip = 256;
  alignas(64) T total[kStrip];
  for (std::int64_t begin = 0; begin < n; begin += kStrip) {
    const std::int64_t count = std::min(kStrip, n - begin);
    std::fill(total, total + count, T(0));
    for (std::int64_t h = 0; h < H; ++h) store_row(from + h * stride + begin, count, total, Write::accumulate);
    store_row(total, count, to + begin, write);
  }
}

template <class T>
void split_columns_cpu(const SplitColumns& s) {
  const std::int64_t W = s.A + s.B;
  parallel_blocks(s.T, rows_per_block(s.H * W), [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const T* x = static_cast<const T*>(s.x) + t * s.H * W;
      for (std::int64_t h = 0; s.a != nullptr && h < s.H; ++h) {
        store_row(x + h * W, s.A, static_cast<T*>(s.a) + (t * s.H + h) * s.A, s.write_a);
      }
      if (s.b != nullptr) store_sum_of_heads(x + s.A, s.H, W, s.B, static_cast<T*>(s.b) + t * s.B, s.write_b);
    }
  });
}

template <class T>
void join_columns_cpu(const JoinColumns& j) {
  const std::int64_t W = j.A + j.B;
  const auto store_part = [&](const T* from, std::int64_t n, T* to) {
    if (from != nullptr) {
      store_row(from, n, to, j.write_y);
    } else if (j.write_y == Write::overwrite) {
      std::fill(to, to + n, T(0));
    }
  };
  parallel_blocks(j.T, rows_per_block(j.H * W), [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const T* b = j.b == nullptr ? nullptr : static_cast<const T*>(j.b) + t * j.B;
      for (std::int64_t row = t * j.H; row < (t + 1) * j.H; ++row) {
        T* y = static_cast<T*>(j.y) + row * W;
        store_part(j.a == nullptr ? nullptr : static_cast<const T*>(j.a) + row * j.A, j.A, y);
        store_part(b, j.B, y + j.A);
      }
    }
  });
}

}  // namespace weft
