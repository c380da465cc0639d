// CPU kernels of embedding.h, templated on float/double.
#pragma once

#include <algorithm>
#include <numeric>

#include "autograd/dispatch.h"
#include "autograd/ops/embedding/embedding.h"
#include "autograd/parallel_for.h"

namespace weft {

template <class T>
void embedding_forward_cpu(const EmbeddingForward& a) {
  for (std::int64_t t = 0; t < a.T; ++t) {
    if (a.tokens[t] < 0 || a.tokens[t] >= a.V) {
      config_error("embedding: token {} at index {} is outside the vocabulary [0, {})", a.tokens[t], t, a.V);
    }
  }
  const auto* table = static_cast<const T*>(a.table);
  auto* y = static_cast<T*>(a.y);
  const std::int64_t D = a.D;
  parallel_blocks(a.T, rows_per_block(D), [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) std::copy_n(table + a.tokens[t] * D, D, y + t * D);
  });
}

// Sorts the tokens by id, keeping their order, so that each row of the table has one owner. The workspace holds
// order [T], the tokens of each id together; first [V+1], where those of an id start; ids [min(T, V)], those that
// occur.
template <class T>
void embedding_backward_cpu(const EmbeddingBackward& a, std::int32_t* workspace) {
  const auto* dy = static_cast<const T*>(a.dy);
  auto* dtable = static_cast<T*>(a.dtable);
  const std::int64_t D = a.D;
  if (a.write_dtable == Write::overwrite) {
    parallel_blocks(a.V * D, 65536, [&](std::int64_t, std::int64_t begin, std::int64_t end) {
      std::fill(dtable + begin, dtable + end, T(0));
    });
  }
  std::int32_t* order = workspace;
  std::int32_t* first = order + a.T;
  std::int32_t* ids = first + a.V + 1;
  std::fill(first, first + a.V + 1, 0);
  for (std::int64_t t = 0; t < a.T; ++t) ++first[a.tokens[t] + 1];
  std::int64_t distinct = 0;
  for (std::int64_t v = 0; v < a.V; ++v) {
    if (first[v + 1] > 0) ids[distinct++] = static_cast<std::int32_t>(v);
    first[v + 1] += first[v];
  }
  // Filling moves first[v] to the end of v's tokens, where the next id starts.
  for (std::int64_t t = 0; t < a.T; ++t) order[first[a.tokens[t]]++] = static_cast<std::int32_t>(t);

  // Strips of columns, so that a frequent token does not keep one thread busy while the others wait.
  constexpr std::int64_t kStrip = 512;
  // Rows are summed in groups, then the groups: the error grows with the group and the number of groups, not with T.
  constexpr std::int64_t kGroup = 64;
  const std::int64_t strips = block_count(D, kStrip);
  parallel_for(distinct * strips, Schedule::dynamic, [&](std::int64_t item) {
    const std::int32_t v = ids[item / strips];
    const std::int64_t column = item % strips * kStrip;
    const std::int64_t n = std::min(kStrip, D - column);
    const std::int64_t begin = v == 0 ? 0 : first[v - 1];
    const std::int64_t end = first[v];
    alignas(64) T total[kStrip];
    alignas(64) T group[kStrip];
    std::fill(total, total + n, T(0));
    for (std::int64_t i = begin; i < end; i += kGroup) {
      std::fill(group, group + n, T(0));
      for (std::int64_t j = i; j < std::min(end, i + kGroup); ++j) {
        const T* row = dy + order[j] * D + column;
#pragma omp simd
        for (std::int64_t c = 0; c < n; ++c) group[c] += row[c];
      }
      for (std::int64_t c = 0; c < n; ++c) total[c] += group[c];
    }
    T* target = dtable + v * D + column;
    for (std::int64_t c = 0; c < n; ++c) target[c] += total[c];
  });
}

}  // namespace weft
