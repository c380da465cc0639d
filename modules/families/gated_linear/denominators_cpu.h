// CPU kernels of denominators.h, templated on float/double.
#pragma once

#include <algorithm>

#include "autograd/parallel_for.h"
#include "modules/families/gated_linear/denominators.h"
#include "modules/families/triangular_products.h"

namespace weft {

// f(row) for every row, in parallel.
template <class F>
void for_each_row(std::int64_t R, std::int64_t D, F&& f) {
  parallel_blocks(R, rows_per_block(D), [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) f(i);
  });
}

template <class T>
void append_ones_forward_cpu(const AppendOnesForward& a) {
  for_each_row(a.R, a.D, [&](std::int64_t i) {
    const T* v = static_cast<const T*>(a.v) + i * a.D;
    T* y = static_cast<T*>(a.y) + i * (a.D + 1);
    std::copy(v, v + a.D, y);
    y[a.D] = 1;
  });
}

template <class T>
void append_ones_backward_cpu(const AppendOnesBackward& a) {
  for_each_row(a.R, a.D, [&](std::int64_t i) {
    const T* dy = static_cast<const T*>(a.dy) + i * (a.D + 1);
    T* dv = static_cast<T*>(a.dv) + i * a.D;
    for (std::int64_t c = 0; c < a.D; ++c) store(dv[c], dy[c], a.write_dv);
  });
}

template <class T>
T guarded(T denominator) {
  return std::max(denominator, static_cast<T>(kLeastDenominator));
}
template <class T>
bool is_free(T denominator) {
  return denominator > static_cast<T>(kLeastDenominator);
}

template <class T>
void divide_forward_cpu(const DivideForward& a) {
  for_each_row(a.R, a.D, [&](std::int64_t i) {
    const T* sums = static_cast<const T*>(a.sums) + i * (a.D + 1);
    T* o = static_cast<T*>(a.o) + i * a.D;
    const T inverse = T(1) / guarded(sums[a.D]);
    for (std::int64_t c = 0; c < a.D; ++c) o[c] = sums[c] * inverse;
  });
}

template <class T>
void divide_backward_cpu(const DivideBackward& a) {
  for_each_row(a.R, a.D, [&](std::int64_t i) {
    const T* sums = static_cast<const T*>(a.sums) + i * (a.D + 1);
    const T* d_o = static_cast<const T*>(a.d_o) + i * a.D;
    T* dsums = static_cast<T*>(a.dsums) + i * (a.D + 1);
    const T inverse = T(1) / guarded(sums[a.D]);
    for (std::int64_t c = 0; c < a.D; ++c) store(dsums[c], d_o[c] * inverse, a.write_dsums);
    const T dn = is_free(sums[a.D]) ? -dot(d_o, sums, a.D) * inverse * inverse : T(0);
    store(dsums[a.D], dn, a.write_dsums);
  });
}

// c.
template <class T>
T difference_weight(double share, T count) {
  return share == 0.0 ? T(1) : static_cast<T>(share) / count;
}

template <class T>
void magnitude_aware_forward_cpu(const MagnitudeAwareForward& a) {
  for_each_row(a.R, a.D, [&](std::int64_t i) {
    const T* sums = static_cast<const T*>(a.sums) + i * (a.D + 1);
    const T* totals = static_cast<const T*>(a.totals) + i * (a.D + 1);
    T* o = static_cast<T*>(a.o) + i * a.D;
    const T z = guarded(sums[a.D]);
    const T weight = difference_weight(a.share, totals[a.D]);
    const T beta = weight + T(1) / z, gamma = weight * (z / totals[a.D]);
    for (std::int64_t c = 0; c < a.D; ++c) o[c] = beta * sums[c] - gamma * totals[c];
  });
}

template <class T>
void magnitude_aware_backward_cpu(const MagnitudeAwareBackward& a) {
  for_each_row(a.R, a.D, [&](std::int64_t i) {
    const T* sums = static_cast<const T*>(a.sums) + i * (a.D + 1);
    const T* totals = static_cast<const T*>(a.totals) + i * (a.D + 1);
    const T* d_o = static_cast<const T*>(a.d_o) + i * a.D;
    const T z = guarded(sums[a.D]), count = totals[a.D];
    const T weight = difference_weight(a.share, count);
    if (a.dsums != nullptr) {
      T* dsums = static_cast<T*>(a.dsums) + i * (a.D + 1);
      const T beta = weight + T(1) / z;
      for (std::int64_t c = 0; c < a.D; ++c) store(dsums[c], beta * d_o[c], a.write_dsums);
      const T dz = -dot(d_o, sums, a.D) / (z * z) - weight * dot(d_o, totals, a.D) / count;
      store(dsums[a.D], is_free(sums[a.D]) ? dz : T(0), a.write_dsums);
    }
    if (a.dtotals != nullptr) {
      T* dtotals = static_cast<T*>(a.dtotals) + i * (a.D + 1);
      const T gamma = weight * (z / count);
      for (std::int64_t c = 0; c < a.D; ++c) store(dtotals[c], -gamma * d_o[c], a.write_dtotals);
      store(dtotals[a.D], T(0), a.write_dtotals);
    }
  });
}

}  // namespace weft
