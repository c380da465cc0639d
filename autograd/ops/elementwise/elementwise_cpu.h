// CPU kernels of elementwise.h, templated on float/double.
#pragma once

#include "autograd/block_sum.h"
#include "autograd/map_cpu.h"
#include "autograd/ops/elementwise/elementwise.h"

namespace weft {

template <class T>
void add_forward_cpu(const AddForward& a) {
  map_cpu<T, 2, 1>(a.N, {static_cast<const T*>(a.a), static_cast<const T*>(a.b)},
                   {{{static_cast<T*>(a.y), Write::overwrite}}}, [](T u, T v, T& y) { y = u + v; });
}

template <class T>
void mul_forward_cpu(const MulForward& a) {
  map_cpu<T, 2, 1>(a.N, {static_cast<const T*>(a.a), static_cast<const T*>(a.b)},
                   {{{static_cast<T*>(a.y), Write::overwrite}}}, [](T u, T v, T& y) { y = u * v; });
}

template <class T>
void mul_backward_cpu(const MulBackward& a) {
  map_cpu<T, 3, 2>(a.N, {static_cast<const T*>(a.a), static_cast<const T*>(a.b), static_cast<const T*>(a.dy)},
                   {{{static_cast<T*>(a.da), a.write_da}, {static_cast<T*>(a.db), a.write_db}}},
                   [](T u, T v, T dy, T& da, T& db) {
                     da = dy * v;
                     db = dy * u;
                   });
}

template <class T>
void scale_cpu(const Scale& a) {
  const T factor = static_cast<T>(a.factor);
  map_cpu<T, 1, 1>(a.N, {static_cast<const T*>(a.a)}, {{{static_cast<T*>(a.y), a.write_y}}},
                   [factor](T u, T& y) { y = factor * u; });
}

template <class T>
void row_forward_cpu(const RowForward& a) {
  const auto* x = static_cast<const T*>(a.x);
  const auto* row = static_cast<const T*>(a.row);
  auto* y = static_cast<T*>(a.y);
  const std::int64_t D = a.D;
  const auto for_rows = [&](const auto& f) {
    parallel_blocks(a.R, rows_per_block(D), [&](std::int64_t, std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        map_serial_cpu<T, 2, 1>(D, {x + i * D, row}, {{{y + i * D, Write::overwrite}}}, f);
      }
    });
  };
  if (a.function == RowFunction::add) {
    for_rows([](T u, T r, T& out) { out = u + r; });
  } else {
    for_rows([](T u, T r, T& out) { out = u * r; });
  }
}

template <class T>
void row_backward_cpu(const RowBackward& a, T* lines) {
  const auto* dy = static_cast<const T*>(a.dy);
  auto* drow = static_cast<T*>(a.drow);
  const std::int64_t D = a.D;
  if (a.function == RowFunction::add) {
    if (drow != nullptr) sum_rows(dy, a.R, D, lines, drow, a.write_drow);
    return;
  }
  const auto* x = static_cast<const T*>(a.x);
  const auto* row = static_cast<const T*>(a.row);
  auto* dx = static_cast<T*>(a.dx);
  const RowBlocks blocks = row_blocks(a.R, D);
  parallel_blocks(a.R, blocks.rows, [&](std::int64_t b, std::int64_t begin, std::int64_t end) {
    T* line = drow != nullptr ? lines + b * D : nullptr;
    if (line != nullptr) std::fill(line, line + D, T(0));
    for (std::int64_t i = begin; i < end; ++i) {
      const T* x_row = x + i * D;
      const T* dy_row = dy + i * D;
      if (dx != nullptr) {
        map_serial_cpu<T, 2, 1>(D, {dy_row, row}, {{{dx + i * D, a.write_dx}}},
                                [](T dy_c, T r, T& dx_c) { dx_c = dy_c * r; });
      }
      if (line == nullptr) continue;
#pragma omp simd
      for (std::int64_t c = 0; c < D; ++c) line[c] += dy_row[c] * x_row[c];
    }
  });
  if (drow != nullptr) add_lines(lines, blocks.count, D, drow, a.write_drow);
}

}  // namespace weft
