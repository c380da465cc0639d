#include <cuda_runtime_api.h>

#include "autograd/check.h"
#include "autograd/cuda/cuda_devices.h"

namespace weft {

std::vector<CudaDeviceInfo> cuda_devices() {
  int driver = 0;
  // 0 without a driver: that machine has no GPU to speak of.
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) return {};
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaErrorNoDevice) return {};
  if (status != cudaSuccess) {
    config_error("the CUDA driver does not work with this build (CUDA {}.{}): {}", CUDART_VERSION / 1000,
                 CUDART_VERSION % 1000 / 10, cudaGetErrorString(status));
  }
  std::vector<CudaDeviceInfo> devices;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, i) != cudaSuccess) continue;
    devices.push_back({properties.name, properties.major, properties.minor, properties.totalGlobalMem});
  }
  return devices;
}

}  // namespace weft
