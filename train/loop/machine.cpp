#include "train/loop/machine.h"

#include <algorithm>
#include <chrono>
#include <unistd.h>
#include <vector>

#include "autograd/blas.h"
#include "autograd/check.h"

namespace weft {

double measure_matrix_rate() {
  constexpr std::int64_t n = 768;
  constexpr auto size = static_cast<std::size_t>(n * n);
  const std::vector<float> a(size, 0.5F), b(size, 0.25F);
  std::vector<float> c(size);
  double best = 0.0;
  // Other programs may disturb: the best of a fifth of a second.
  const auto begin = std::chrono::steady_clock::now();
  for (auto start = begin; start - begin < std::chrono::milliseconds(200);) {
    gemm(Op::none, Op::transpose, n, n, n, 1.0F, a.data(), n, b.data(), n, 0.0F, c.data(), n);
    const auto end = std::chrono::steady_clock::now();
    best = std::max(best, 2.0 * static_cast<double>(n * n * n) / std::chrono::duration<double>(end - start).count());
    start = end;
  }
  return best;
}

std::size_t physical_memory_bytes() {
  return static_cast<std::size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
}

void check_processor() {
#if defined(__x86_64__) && defined(__AVX2__)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
    config_error(
        "this processor has no AVX2 and FMA, which weft was compiled for; configure with -DWEFT_CPU_ARCH=x86-64 and "
        "build again");
  }
#endif
}

}  // namespace weft
