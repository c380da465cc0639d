// Threaded loops over fixed blocks. Blocks do not depend on the number of threads, so neither do results.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <omp.h>
#include <utility>

namespace weft {

// Blocks of one loop.
inline std::int64_t block_count(std::int64_t n, std::int64_t block) {
  return (n + block - 1) / block;
}

// Calls f(i) for i in [0, n), spread over the threads; `dynamic` hands out items one by one (uneven work).
// f must not throw. Loops of a single item, and loops inside another loop, run on the calling thread.
enum class Schedule { fixed, dynamic };

template <class F>
void parallel_for(std::int64_t n, Schedule schedule, F&& f) {
  if (n <= 1 || omp_in_parallel()) {
    for (std::int64_t i = 0; i < n; ++i) f(i);
  } else if (schedule == Schedule::fixed) {
#pragma omp parallel for schedule(static)
    for (std::int64_t i = 0; i < n; ++i) f(i);
  } else {
#pragma omp parallel for schedule(dynamic, 1)
    for (std::int64_t i = 0; i < n; ++i) f(i);
  }
}

// Calls f(i) for tasks [0, n) of uneven work that call the BLAS. Always inside a threaded loop, be there only one task,
// because a product rounds differently when the BLAS splits it over threads.
template <class F>
void for_each_task(std::int64_t n, F&& f) {
  parallel_for(std::max<std::int64_t>(n, 2), Schedule::dynamic, [&](std::int64_t i) {
    if (i < n) f(i);
  });
}

// Upper bound of omp_get_thread_num() in tasks started here, however few they are: the threads that may run them, or
// that already do, where this is inside a loop.
inline int task_threads() {
  return std::max(omp_get_max_threads(), omp_get_num_threads());
}

// Calls f(b, begin, end) for the blocks of [0, n).
template <class F>
void parallel_blocks(std::int64_t n, std::int64_t block, F&& f) {
  parallel_for(block_count(n, block), Schedule::fixed,
               [&](std::int64_t b) { f(b, b * block, std::min(n, (b + 1) * block)); });
}

// Rows per block so that a block is worth a thread's while: about 16k elements.
inline std::int64_t rows_per_block(std::int64_t row_elements) {
  return std::max<std::int64_t>(1, 16384 / std::max<std::int64_t>(1, row_elements));
}

}  // namespace weft
