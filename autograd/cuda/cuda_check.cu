#include "autograd/check.h"
#include "autograd/cuda/cuda_check.cuh"

namespace weft::detail {

void cuda_failed(cudaError_t status, const char* call, const char* file, int line) {
  const bool setup = status == cudaErrorNoDevice || status == cudaErrorInsufficientDriver ||
                     status == cudaErrorInvalidDevice || status == cudaErrorNoKernelImageForDevice ||
                     status == cudaErrorSystemDriverMismatch || status == cudaErrorSystemNotReady;
  if (setup) {
    config_error("CUDA: {} ({}); this weft was built with CUDA {}.{} for the GPU architectures of WEFT_CUDA_ARCHS",
                 cudaGetErrorString(status), cudaGetErrorName(status), CUDART_VERSION / 1000,
                 CUDART_VERSION % 1000 / 10);
  }
  fail(ExitCode::internal, "{}:{}: {} failed: {} ({})", file, line, call, cudaGetErrorString(status),
       cudaGetErrorName(status));
}

}  // namespace weft::detail
