// CPU kernels of linear.h, templated on float/double.
#pragma once

#include <algorithm>

#include "autograd/blas.h"
#include "autograd/block_sum.h"
#include "autograd/ops/linear/linear.h"

namespace weft {

template <class T>
void linear_forward_cpu(const LinearForward& a) {
  auto* y = static_cast<T*>(a.y);
  if (a.bias != nullptr) {
    const auto* bias = static_cast<const T*>(a.bias);
    parallel_blocks(a.R, rows_per_block(a.O), [&](std::int64_t, std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) std::copy(bias, bias + a.O, y + i * a.O);
    });
  }
  const T beta = a.bias != nullptr ? T(1) : T(0);
  gemm(Op::none, Op::transpose, a.R, a.O, a.I, T(1), static_cast<const T*>(a.x), a.I, static_cast<const T*>(a.weight),
       a.I, beta, y, a.O);
}

template <class T>
void linear_backward_cpu(const LinearBackward& a, T* lines) {
  const auto* dy = static_cast<const T*>(a.dy);
  const auto beta = [](Write write) { return write == Write::accumulate ? T(1) : T(0); };
  if (a.dx != nullptr) {
    gemm(Op::none, Op::none, a.R, a.I, a.O, T(1), dy, a.O, static_cast<const T*>(a.weight), a.I, beta(a.write_dx),
         static_cast<T*>(a.dx), a.I);
  }
  if (a.dweight != nullptr) {
    gemm(Op::transpose, Op::none, a.O, a.I, a.R, T(1), dy, a.O, static_cast<const T*>(a.x), a.I, beta(a.write_dweight),
         static_cast<T*>(a.dweight), a.I);
  }
  if (a.dbias != nullptr) sum_rows(dy, a.R, a.O, lines, static_cast<T*>(a.dbias), a.write_dbias);
}

}  // namespace weft
