// CPU kernels of repeat_heads.h, templated on float/double.
#pragma once

#include <algorithm>

#include "autograd/ops/repeat_heads/repeat_heads.h"
#include "autograd/parallel_for.h"

namespace weft {

template <class T>
void repeat_heads_forward_cpu(const RepeatHeadsForward& a) {
  const std::int64_t copies = a.H / a.G;
  parallel_blocks(a.T * a.G, rows_per_block(copies * a.D), [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const T* x = static_cast<const T*>(a.x) + i * a.D;
      T* y = static_cast<T*>(a.y) + i * copies * a.D;
      for (std::int64_t copy = 0; copy < copies; ++copy) std::copy(x, x + a.D, y + copy * a.D);
    }
  });
}

template <class T>
void repeat_heads_backward_cpu(const RepeatHeadsBackward& a) {
  const std::int64_t copies = a.H / a.G;
  parallel_blocks(a.T * a.G, rows_per_block(copies * a.D), [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const T* dy = static_cast<const T*>(a.dy) + i * copies * a.D;
      T* dx = static_cast<T*>(a.dx) + i * a.D;
      for (std::int64_t c = 0; c < a.D; ++c) {
        T sum = 0;
        for (std::int64_t copy = 0; copy < copies; ++copy) sum += dy[copy * a.D + c];
        store(dx[c], sum, a.write_dx);
      }
    }
  });
}

}  // namespace weft
