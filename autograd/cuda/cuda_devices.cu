#include <cuda_runtime_api.h>

#include "autograd/cuda/cuda_check.cuh"
#include "autograd/cuda/cuda_devices.h"
#include "autograd/cuda/cuda_target.h"

namespace weft {

std::vector<CudaDeviceInfo> cuda_devices() {
  if (installed_driver() == 0) return {};  // that machine has no GPU to speak of
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaErrorNoDevice) return {};
  WEFT_CUDA_CALL(status);
  std::vector<CudaDeviceInfo> devices;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, i) != cudaSuccess) continue;
    devices.push_back({properties.name, properties.major, properties.minor, properties.totalGlobalMem});
  }
  return devices;
}

}  // namespace weft
