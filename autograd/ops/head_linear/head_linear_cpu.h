// CPU kernels of head_linear.h, templated on float/double: one product a head, on rows that are a token apart.
#pragma once

#include "autograd/blas.h"
#include "autograd/ops/head_linear/head_linear.h"

namespace weft {

template <class T>
void head_linear_forward_cpu(const HeadLinearForward& a) {
  for (std::int64_t h = 0; h < a.H; ++h) {
    const T* x = static_cast<const T*>(a.x) + h * a.I;
    const T* weight = static_cast<const T*>(a.weight) + h * a.O * a.I;
    T* y = static_cast<T*>(a.y) + h * a.O;
    gemm(Op::none, Op::transpose, a.T, a.O, a.I, T(1), x, a.H * a.I, weight, a.I, T(0), y, a.H * a.O);
  }
}

template <class T>
void head_linear_backward_cpu(const HeadLinearBackward& a) {
  const auto keep = [](Write write) { return write == Write::accumulate ? T(1) : T(0); };
  for (std::int64_t h = 0; h < a.H; ++h) {
    const T* x = static_cast<const T*>(a.x) + h * a.I;
    const T* weight = static_cast<const T*>(a.weight) + h * a.O * a.I;
    const T* dy = static_cast<const T*>(a.dy) + h * a.O;
    if (a.dx != nullptr) {
      gemm(Op::none, Op::none, a.T, a.I, a.O, T(1), dy, a.H * a.O, weight, a.I, keep(a.write_dx),
           static_cast<T*>(a.dx) + h * a.I, a.H * a.I);
    }
    if (a.dweight != nullptr) {
      gemm(Op::transpose, Op::none, a.O, a.I, a.T, T(1), dy, a.H * a.O, x, a.H * a.I, keep(a.write_dweight),
           static_cast<T*>(a.dweight) + h * a.O * a.I, a.I);
    }
  }
}

}  // namespace weft
