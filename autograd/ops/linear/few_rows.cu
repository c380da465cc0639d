#include "autograd/cuda/map_cuda.cuh"
#include "autograd/ops/linear/few_rows.h"

namespace weft {
namespace {

constexpr int kThreads = 256;
constexpr int kUnroll = 4;  // packs of a row of the weight that a lane has under way

// A warp for each output: lanes take packs of its row of the weight in turn. Rows of x come from the first cache.
template <class T, class Y, int kRows>
__global__ void __launch_bounds__(kThreads)
    few_rows(int I, std::int64_t O, const T* x, const T* weight, const float* bias, Y* y) {
  constexpr int kN = 16 / static_cast<int>(sizeof(T));
  const std::int64_t o = static_cast<std::int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (o >= O) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const T* const row = weight + o * I;
  float sum[kRows] = {};
  for (int begin = lane * kN; begin < I; begin += 32 * kN * kUnroll) {
    Pack<T, kN> w[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int i = begin + u * 32 * kN;
      if (i < I) w[u] = *reinterpret_cast<const Pack<T, kN>*>(row + i);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int i = begin + u * 32 * kN;
      if (i >= I) break;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        float a[kN];
        load_pack(x + static_cast<std::int64_t>(r) * I + i, a);
#pragma unroll
        for (int e = 0; e < kN; ++e) sum[r] = fmaf(a[e], to_float(w[u].data[e]), sum[r]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], step);
    if (lane == 0) y[r * O + o] = from_float<Y>(sum[r] + (bias == nullptr ? 0.0f : bias[o]));
  }
}

}  // namespace

bool few_rows_fit(const LinearForward& args) {
  const auto bytes = [&](std::int64_t n) { return n * static_cast<std::int64_t>(size_of(args.dtype)); };
  const auto aligned = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; };
  return args.R > 0 && args.R <= kFewRows && args.O > 0 && args.I < (std::int64_t{1} << 30) &&
         bytes(args.I) % 16 == 0 && aligned(args.x) && aligned(args.weight);
}

void linear_few_rows_cuda(const LinearForward& args, const Launch& launch) {
  const auto blocks = static_cast<unsigned>((args.O + kThreads / 32 - 1) / (kThreads / 32));
  dispatch_cuda(args.dtype, "linear", [&]<class T>() {
    const auto run = [&]<class Y, int kRows>() {
      few_rows<T, Y, kRows><<<blocks, kThreads, 0, cuda_stream(launch.stream)>>>(
          static_cast<int>(args.I), args.O, static_cast<const T*>(args.x), static_cast<const T*>(args.weight),
          static_cast<const float*>(args.bias), static_cast<Y*>(args.y));
    };
    const auto run_rows = [&]<class Y>() {
      switch (args.R) {
        case 1:
          return run.template operator()<Y, 1>();
        case 2:
          return run.template operator()<Y, 2>();
        case 3:
          return run.template operator()<Y, 3>();
        default:
          return run.template operator()<Y, 4>();
      }
    };
    args.rounded ? run_rows.template operator()<T>() : run_rows.template operator()<float>();
  });
  WEFT_CHECK_LAUNCH();
}

}  // namespace weft
