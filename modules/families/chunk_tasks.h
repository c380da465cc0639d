// Threaded loops over chunks and sequences, whose bodies call the BLAS.
#pragma once

#include "autograd/parallel_for.h"

namespace weft {

// Threads of a chunked kernel: as many as may run its loops, or as already do, when it is called inside one.
inline int chunk_threads() {
  return std::max(omp_get_max_threads(), omp_get_num_threads());
}

// Of N documents, cu_seqlens [N + 1].
inline std::int64_t documents_with_tokens(const std::int32_t* cu_seqlens, std::int64_t N) {
  std::int64_t documents = 0;
  for (std::int64_t n = 0; n < N; ++n) documents += cu_seqlens[n + 1] > cu_seqlens[n] ? 1 : 0;
  return documents;
}

// Chunks and sequences are always visited inside a threaded loop, be there only one, because a product rounds
// differently when the BLAS splits it over threads.
template <class F>
void for_each_task(std::int64_t n, F&& f) {
  parallel_for(std::max<std::int64_t>(n, 2), Schedule::dynamic, [&](std::int64_t i) {
    if (i < n) f(i);
  });
}

}  // namespace weft
