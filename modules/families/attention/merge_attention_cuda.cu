#include "autograd/cuda/map_cuda.cuh"
#include "modules/families/attention/attention.h"

namespace weft {
namespace {

constexpr int kThreads = 128;

// One warp a row.
template <class T>
__global__ void __launch_bounds__(kThreads)
    merge(std::int64_t rows, std::int64_t D_V, T* o_a, float* lse_a, const T* o_b, const float* lse_b) {
  const std::int64_t row = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) / 32;
  if (row >= rows) return;
  const float a = lse_a[row], b = lse_b[row];
  if (b == -INFINITY) return;
  const float top = fmaxf(a, b);
  const float lse = top + logf(expf(a - top) + expf(b - top));
  const float keep = expf(a - lse), add = expf(b - lse);
  for (std::int64_t c = row * D_V + threadIdx.x % 32; c < (row + 1) * D_V; c += 32) {
    o_a[c] = from_float<T>(keep * to_float(o_a[c]) + add * to_float(o_b[c]));
  }
  __syncwarp();
  if (threadIdx.x % 32 == 0) lse_a[row] = lse;
}

}  // namespace

void merge_attention_cuda(const MergeAttention& a, const Launch& launch) {
  if (a.rows == 0) return;
  const auto blocks = static_cast<unsigned>((a.rows * 32 + kThreads - 1) / kThreads);
  dispatch_cuda(a.dtype, "merge_attention", [&]<class T>() {
    merge<T><<<blocks, kThreads, 0, cuda_stream(launch.stream)>>>(
        a.rows, a.D_V, static_cast<T*>(a.o_a), static_cast<float*>(a.lse_a), static_cast<const T*>(a.o_b),
        static_cast<const float*>(a.lse_b));
  });
  WEFT_CHECK_LAUNCH();
}

}  // namespace weft
