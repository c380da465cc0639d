// CUDA calls that fail become Errors with the call and its place. For files that see the CUDA headers.
#pragma once

#include <cuda_runtime_api.h>

#include "autograd/device.h"

namespace weft {

namespace detail {
[[noreturn]] void cuda_failed(cudaError_t status, const char* call, const char* file, int line);
}  // namespace detail

inline cudaStream_t cuda_stream(const Stream& stream) {
  return static_cast<cudaStream_t>(stream.handle);
}

}  // namespace weft

// Throws Error: config for a device or driver that is missing or does not fit, internal for everything else.
#define WEFT_CUDA_CALL(call)                                               \
  do {                                                                     \
    const cudaError_t weft_status = (call);                                \
    if (weft_status != cudaSuccess) [[unlikely]]                           \
      ::weft::detail::cuda_failed(weft_status, #call, __FILE__, __LINE__); \
  } while (false)

// After each kernel launch; finds launches that the driver refused, not faults inside the kernel.
#define WEFT_CHECK_LAUNCH() WEFT_CUDA_CALL(cudaGetLastError())
