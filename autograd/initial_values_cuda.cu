#include "autograd/cuda/map_cuda.cuh"
#include "autograd/initial_values.h"

namespace weft {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) draw_kernel(Init init, std::uint64_t key, std::int64_t N, float* y) {
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < N; i += stride) {
    y[i] = static_cast<float>(initial_value(init, key, static_cast<std::uint64_t>(i)));
  }
}

}  // namespace

void initial_values_cuda(const InitialValues& args, const Launch& launch) {
  if (args.N == 0) return;
  WEFT_CHECK(args.dtype == DType::f32, "initial values of {} on CUDA", name_of(args.dtype));
  constexpr std::int64_t kMostBlocks = 4096;
  const auto blocks = static_cast<unsigned>(std::min(kMostBlocks, (args.N + kThreads - 1) / kThreads));
  draw_kernel<<<blocks, kThreads, 0, cuda_stream(launch.stream)>>>(args.init, args.key, args.N,
                                                                   static_cast<float*>(args.y));
  WEFT_CHECK_LAUNCH();
}

}  // namespace weft
