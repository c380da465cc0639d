#include <algorithm>

#include "autograd/cuda/map_cuda.cuh"
#include "train/loop/nonfinite_tally.h"

namespace weft {
namespace {

constexpr int kThreads = 256, kPack = 4;
constexpr std::int64_t kMaxBlocks = 1024;

template <class T>
__global__ void __launch_bounds__(kThreads)
    count_nonfinite(const T* __restrict__ x, std::int64_t n, bool aligned, NonfiniteTally* tally) {
  unsigned long long count = 0, behind = 0;
  const auto look = [&](std::int64_t i, float value) {
    if (isfinite(value)) return;
    ++count;
    const auto left = static_cast<unsigned long long>(n - i);
    behind = behind > left ? behind : left;
  };
  const std::int64_t whole = aligned ? n / kPack * kPack : 0;
  const std::int64_t thread = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const std::int64_t threads = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = thread * kPack; i < whole; i += threads * kPack) {
    float values[kPack];
    load_pack(x + i, values);
#pragma unroll
    for (int k = 0; k < kPack; ++k) look(i + k, values[k]);
  }
  for (std::int64_t i = whole + thread; i < n; i += threads) look(i, to_float(x[i]));
  if (count == 0) return;
  // Sums and maxima of integers: no order of them gives another result.
  atomicAdd(&tally->count, count);
  atomicMax(&tally->behind, behind);
}

}  // namespace

void count_nonfinite_cuda(const NonfiniteCount& a, const Launch& launch) {
  if (a.N == 0) return;
  const std::int64_t blocks = std::min(kMaxBlocks, (a.N + kThreads * kPack - 1) / (kThreads * kPack));
  dispatch_cuda(a.dtype, "count of what is not finite", [&]<class T>() {
    const bool aligned = reinterpret_cast<std::uintptr_t>(a.x) % (kPack * sizeof(T)) == 0;
    count_nonfinite<<<static_cast<unsigned>(blocks), kThreads, 0, cuda_stream(launch.stream)>>>(
        static_cast<const T*>(a.x), a.N, aligned, a.tally);
  });
  WEFT_CHECK_LAUNCH();
}

}  // namespace weft
