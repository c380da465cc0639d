// CPU kernels of head_skip.h, templated on float/double.
#pragma once

#include "autograd/block_sum.h"
#include "autograd/ops/head_skip/head_skip.h"

namespace weft {

template <class T>
void head_skip_forward_cpu(const HeadSkipForward& a) {
  parallel_blocks(a.T * a.H, rows_per_block(a.D), [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const T scale = static_cast<const T*>(a.scale)[i % a.H];
      const T* o = static_cast<const T*>(a.o) + i * a.D;
      const T* x = static_cast<const T*>(a.x) + i * a.D;
      T* y = static_cast<T*>(a.y) + i * a.D;
#pragma omp simd
      for (std::int64_t c = 0; c < a.D; ++c) y[c] = o[c] + scale * x[c];
    }
  });
}

// Sums of a whole row of tokens end in one number: fp64, over fixed blocks. `lines` has row_blocks(T, H D).count + 1
// lines of H doubles.
template <class T>
void head_skip_backward_cpu(const HeadSkipBackward& a, double* lines) {
  const RowBlocks blocks = row_blocks(a.T, a.H * a.D);
  parallel_blocks(a.T, blocks.rows, [&](std::int64_t b, std::int64_t begin, std::int64_t end) {
    double* line = lines + b * a.H;
    std::fill(line, line + a.H, 0.0);
    for (std::int64_t i = begin * a.H; i < end * a.H; ++i) {
      const T* x = static_cast<const T*>(a.x) + i * a.D;
      const T* dy = static_cast<const T*>(a.dy) + i * a.D;
      if (a.dx != nullptr) {
        const T scale = static_cast<const T*>(a.scale)[i % a.H];
        T* dx = static_cast<T*>(a.dx) + i * a.D;
        for (std::int64_t c = 0; c < a.D; ++c) store(dx[c], scale * dy[c], a.write_dx);
      }
      double sum = 0.0;
#pragma omp simd reduction(+ : sum)
      for (std::int64_t c = 0; c < a.D; ++c) sum += static_cast<double>(dy[c]) * static_cast<double>(x[c]);
      line[i % a.H] += sum;
    }
  });
  if (a.dscale == nullptr) return;
  double* total = lines + blocks.count * a.H;
  add_lines(lines, blocks.count, a.H, total, Write::overwrite);
  for (std::int64_t h = 0; h < a.H; ++h) {
    store(static_cast<T*>(a.dscale)[h], static_cast<T>(total[h]), a.write_dscale);
  }
}

}  // namespace weft
