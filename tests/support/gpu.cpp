#include "tests/support/gpu.h"

#include "autograd/cuda/cuda_devices.h"
#include "autograd/cuda/cuda_memory.h"

namespace weft::testing {

bool gpu_available() {
  static const bool available = !cuda_devices().empty();
  return available;
}

Stream gpu_stream() {
  static const CudaStream stream(0);
  return stream;
}

std::shared_ptr<Allocator> gpu_memory(std::size_t bytes) {
  return std::make_shared<CudaArena>(gpu_stream(), bytes, Hygiene::hostile);
}

}  // namespace weft::testing
