#include "autograd/cuda/cuda_devices.h"

#ifndef WEFT_CUDA
namespace weft {

std::vector<CudaDeviceInfo> cuda_devices() {
  return {};
}

}  // namespace weft
#endif
