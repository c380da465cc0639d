#include <algorithm>
#include <vector>

#include "autograd/cuda/cuda_check.cuh"
#include "autograd/cuda/cuda_memory.h"
#include "autograd/cuda/matmul.h"
#include "autograd/philox.h"
#include "train/loop/cuda_step.h"

namespace weft {
namespace {

__global__ void mean_loss(MeanLoss args) {
  double sum = 0.0;
  for (std::int64_t a = 0; a < args.micro_batches; ++a) sum += args.sums[4 * a];
  *args.mean = sum / static_cast<double>(*args.denominator);
}

struct Events {
  cudaEvent_t begin = nullptr, end = nullptr;
  Events() {
    WEFT_CUDA_CALL(cudaEventCreate(&begin));
    WEFT_CUDA_CALL(cudaEventCreate(&end));
  }
  ~Events() {
    (void)cudaEventDestroy(begin);
    (void)cudaEventDestroy(end);
  }
};

}  // namespace

void mean_loss_cuda(const MeanLoss& args, const Stream& stream) {
  mean_loss<<<1, 1, 0, cuda_stream(stream)>>>(args);
  WEFT_CHECK_LAUNCH();
}

double measure_cuda_matrix_rate(const Place& place) {
  const std::int64_t n = place.dtype == DType::bf16 ? 8192 : 4096;
  // Random numbers: zeros run faster.
  constexpr std::int64_t kPeriod = 65536;
  Tensor random = Tensor::empty({kPeriod}, DType::f32);
  for (std::int64_t i = 0; i < kPeriod; ++i) {
    RandomWords words(1, RandomStream::test, static_cast<std::uint64_t>(i));
    random.data<float>()[i] = static_cast<float>(words.uniform()) - 0.5F;
  }
  const Tensor period = to_memory(to_host(random, place.dtype, {}), place.arena, place.stream);
  const Tensor a({n, n}, place.dtype, place.arena), b({n, n}, place.dtype, place.arena),
      c({n, n}, place.dtype, place.arena);
  for (const Tensor* t : {&a, &b}) {
    const Tensor flat = t->reshape({n * n});
    for (std::int64_t i = 0; i < n * n; i += kPeriod) copy(flat.rows(i, i + kPeriod), period, place.stream);
  }
  const Tensor workspace({static_cast<std::int64_t>(kMatmulWorkspace / 4)}, DType::i32, place.arena);
  const Launch launch{.stream = place.stream, .workspace = workspace.raw(), .workspace_bytes = kMatmulWorkspace};
  const Matmul product{.op_b = Op::transpose,
                       .m = n,
                       .n = n,
                       .k = n,
                       .operands = place.dtype,
                       .output = place.dtype,
                       .a = a.raw(),
                       .b = b.raw(),
                       .c = c.raw(),
                       .lda = n,
                       .ldb = n,
                       .ldc = n};
  constexpr int kRuns = 12;
  std::vector<float> milliseconds;
  const Events events;
  for (int i = 0; i < kRuns + 3; ++i) {
    WEFT_CUDA_CALL(cudaEventRecord(events.begin, cuda_stream(place.stream)));
    matmul(product, launch);
    WEFT_CUDA_CALL(cudaEventRecord(events.end, cuda_stream(place.stream)));
    WEFT_CUDA_CALL(cudaEventSynchronize(events.end));
    float time = 0.0F;
    WEFT_CUDA_CALL(cudaEventElapsedTime(&time, events.begin, events.end));
    if (i >= 3) milliseconds.push_back(time);
  }
  std::nth_element(milliseconds.begin(), milliseconds.begin() + kRuns / 2, milliseconds.end());
  const auto cube = static_cast<double>(n * n) * static_cast<double>(n);
  return 2.0 * cube / (static_cast<double>(milliseconds[kRuns / 2]) * 1e-3);
}

}  // namespace weft
