// CPU kernels of rows.h, templated on float/double.
#pragma once

#include <algorithm>

#include "autograd/ops/rows/rows.h"
#include "autograd/parallel_for.h"

namespace weft {

// The source that holds stacked row s.
inline std::int64_t source_of(const std::int64_t* ends, std::int64_t s) {
  std::int64_t i = 0;
  while (s >= ends[i]) ++i;
  return i;
}

template <class T>
void take_rows_forward_cpu(const TakeRowsForward& a) {
  parallel_blocks(a.R, rows_per_block(a.D), [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      const std::int64_t i = source_of(a.ends, a.index[r]);
      const std::int64_t row = a.index[r] - (i > 0 ? a.ends[i - 1] : 0);
      std::copy_n(static_cast<const T*>(a.sources[i]) + row * a.D, a.D, static_cast<T*>(a.y) + r * a.D);
    }
  });
}

template <class T>
void take_rows_backward_cpu(const TakeRowsBackward& a) {
  const auto* dy = static_cast<const T*>(a.dy);
  for (std::int64_t i = 0, first = 0; i < kMaxRowSources; first = a.ends[i++]) {
    auto* dsource = static_cast<T*>(a.dsources[i]);
    if (dsource == nullptr) continue;
    parallel_blocks(a.ends[i] - first, rows_per_block(a.D), [&](std::int64_t, std::int64_t begin, std::int64_t end) {
      constexpr std::int64_t kStrip = 256;
      T sum[kStrip];
      for (std::int64_t row = begin; row < end; ++row) {
        const std::int32_t* user = a.users + a.begin[first + row];
        const std::int32_t* last = a.users + a.begin[first + row + 1];
        for (std::int64_t c = 0; c < a.D; c += kStrip) {
          const std::int64_t n = std::min(kStrip, a.D - c);
          std::fill_n(sum, n, T(0));
          for (const std::int32_t* r = user; r < last; ++r) {
            for (std::int64_t x = 0; x < n; ++x) sum[x] += dy[*r * a.D + c + x];
          }
          for (std::int64_t x = 0; x < n; ++x) store(dsource[row * a.D + c + x], sum[x], a.write[i]);
        }
      }
    });
  }
}

}  // namespace weft
