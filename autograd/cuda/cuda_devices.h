// The GPUs of this process.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace weft {

struct CudaDeviceInfo {
  std::string name;
  int compute_major = 0;
  int compute_minor = 0;
  std::size_t memory_bytes = 0;
};

// Empty in a build without CUDA and where there is no device. Error (config) if there is a device but the driver does
// not work with this build, saying why.
std::vector<CudaDeviceInfo> cuda_devices();

}  // namespace weft
