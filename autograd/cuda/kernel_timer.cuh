// Times of kernels: CUDA events around each launch, the median of many after a warm-up.
#pragma once

#include <algorithm>
#include <vector>

#include "autograd/cuda/cuda_check.cuh"

namespace weft {

// Seconds of one call of `launch(i)`, i = 0, 1, ...: callers that touch less than the L2 cache holds rotate buffers by
// i. Waits for the stream.
template <class F>
double median_seconds(const Stream& stream, F&& launch, int repeats = 25, int warm_up = 3) {
  const cudaStream_t handle = cuda_stream(stream);
  std::vector<cudaEvent_t> events(static_cast<std::size_t>(repeats) + 1);
  for (cudaEvent_t& event : events) WEFT_CUDA_CALL(cudaEventCreate(&event));
  for (int i = 0; i < warm_up; ++i) launch(i);
  WEFT_CUDA_CALL(cudaEventRecord(events[0], handle));
  for (int i = 0; i < repeats; ++i) {
    launch(warm_up + i);
    WEFT_CUDA_CALL(cudaEventRecord(events[static_cast<std::size_t>(i) + 1], handle));
  }
  WEFT_CUDA_CALL(cudaEventSynchronize(events.back()));
  std::vector<double> seconds;
  for (std::size_t i = 0; i + 1 < events.size(); ++i) {
    float milliseconds = 0.0f;
    WEFT_CUDA_CALL(cudaEventElapsedTime(&milliseconds, events[i], events[i + 1]));
    seconds.push_back(1e-3 * static_cast<double>(milliseconds));
  }
  for (cudaEvent_t& event : events) (void)cudaEventDestroy(event);
  std::nth_element(seconds.begin(), seconds.begin() + repeats / 2, seconds.end());
  return seconds[static_cast<std::size_t>(repeats / 2)];
}

}  // namespace weft
