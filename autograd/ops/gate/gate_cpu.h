// CPU kernels of gate.h, templated on float/double.
#pragma once

#include "autograd/gelu.h"
#include "autograd/map_cpu.h"
#include "autograd/ops/activation/activation_cpu.h"
#include "autograd/ops/gate/gate.h"

namespace weft {

struct LinearFunction {
  template <class T>
  T value(T x) const {
    return x;
  }
  template <class T>
  T slope(T) const {
    return T(1);
  }
};

template <class F>
void dispatch_gate(GateFunction function, F&& f) {
  switch (function) {
    case GateFunction::sigmoid:
      return f(SigmoidFunction{});
    case GateFunction::silu:
      return f(SiluFunction{});
    case GateFunction::gelu:
      return f(GeluFunction{});
    case GateFunction::linear:
      return f(LinearFunction{});
  }
}

template <class T>
void gate_forward_cpu(const GateForward& a) {
  const auto* x = static_cast<const T*>(a.x);
  const auto* g = static_cast<const T*>(a.g);
  auto* y = static_cast<T*>(a.y);
  dispatch_gate(a.function, [&](const auto& function) {
    if (!a.per_row) {
      return map_cpu<T, 2, 1>(a.R * a.D, {x, g}, {{{y, Write::overwrite}}},
                              [function](T x_i, T g_i, T& y_i) { y_i = x_i * function.value(g_i); });
    }
    const std::int64_t D = a.D;
    parallel_blocks(a.R, rows_per_block(D), [&](std::int64_t, std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const T gate = function.value(g[i]);
#pragma omp simd
        for (std::int64_t c = i * D; c < (i + 1) * D; ++c) y[c] = x[c] * gate;
      }
    });
  });
}

template <class T>
void gate_backward_cpu(const GateBackward& a) {
  const auto* x = static_cast<const T*>(a.x);
  const auto* g = static_cast<const T*>(a.g);
  const auto* dy = static_cast<const T*>(a.dy);
  auto* dx = static_cast<T*>(a.dx);
  auto* dg = static_cast<T*>(a.dg);
  dispatch_gate(a.function, [&](const auto& function) {
    if (!a.per_row) {
      return map_cpu<T, 3, 2>(a.R * a.D, {x, g, dy}, {{{dx, a.write_dx}, {dg, a.write_dg}}},
                              [function](T x_i, T g_i, T dy_i, T& dx_i, T& dg_i) {
                                dx_i = dy_i * function.value(g_i);
                                dg_i = dy_i * x_i * function.slope(g_i);
                              });
    }
    const std::int64_t D = a.D;
    parallel_blocks(a.R, rows_per_block(D), [&](std::int64_t, std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const T* x_row = x + i * D;
        const T* dy_row = dy + i * D;
        if (dx != nullptr) {
          const T gate = function.value(g[i]);
          map_serial_cpu<T, 1, 1>(D, {dy_row}, {{{dx + i * D, a.write_dx}}},
                                  [gate](T dy_c, T& dx_c) { dx_c = dy_c * gate; });
        }
        if (dg != nullptr) {
          T dot = 0;
#pragma omp simd reduction(+ : dot)
          for (std::int64_t c = 0; c < D; ++c) dot += dy_row[c] * x_row[c];
          store(dg[i], dot * function.slope(g[i]), a.write_dg);
        }
      }
    });
  });
}

}  // namespace weft
