#include "autograd/cuda/cuda_check.cuh"
#include "autograd/cuda/cuda_events.h"

namespace weft {

void* create_cuda_event() {
  cudaEvent_t event = nullptr;
  WEFT_CUDA_CALL(cudaEventCreate(&event));
  return event;
}

void destroy_cuda_event(void* event) noexcept {
  (void)cudaEventDestroy(static_cast<cudaEvent_t>(event));
}

void record_cuda_event(void* event, const Stream& stream) {
  WEFT_CUDA_CALL(cudaEventRecord(static_cast<cudaEvent_t>(event), cuda_stream(stream)));
}

double seconds_between_cuda_events(void* first, void* second) {
  float milliseconds = 0.0F;
  WEFT_CUDA_CALL(cudaEventSynchronize(static_cast<cudaEvent_t>(second)));
  WEFT_CUDA_CALL(
      cudaEventElapsedTime(&milliseconds, static_cast<cudaEvent_t>(first), static_cast<cudaEvent_t>(second)));
  return 1e-3 * static_cast<double>(milliseconds);
}

}  // namespace weft
