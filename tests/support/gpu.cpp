#include "tests/support/gpu.h"

#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "autograd/cuda/cuda_devices.h"
#include "autograd/cuda/cuda_memory.h"

#ifdef WEFT_CUDA
#include "autograd/cuda/cuda_check.cuh"
#endif

namespace weft::testing {
namespace {

#ifdef WEFT_CUDA

// Every block by itself from the driver and no byte longer than asked for, so that the sanitizer knows where each
// tensor ends. Poisoned blocks start as NaN, the others as what initcheck takes for unwritten.
class ExactBlocks final : public Allocator {
 public:
  ExactBlocks(const Stream& stream, bool poisoned) : stream_(stream), poisoned_(poisoned) {}

  void* allocate(std::size_t bytes) override {
    void* block = nullptr;
    bytes = std::max<std::size_t>(bytes, 1);
    WEFT_CUDA_CALL(cudaMalloc(&block, bytes));
    if (poisoned_) WEFT_CUDA_CALL(cudaMemsetAsync(block, 0xff, bytes, cuda_stream(stream_)));
    return block;
  }
  void release(void* block) noexcept override { (void)cudaFree(block); }  // waits for the device
  Device device() const override { return stream_.device; }

 private:
  Stream stream_;
  bool poisoned_;
};

#endif

}  // namespace

Sanitize sanitize() {
  static const Sanitize wish = [] {
    const char* text = std::getenv("WEFT_TESTS_SANITIZE");
    const std::string_view value = text == nullptr ? "" : text;
    return value == "races"           ? Sanitize::races
           : value == "memory"        ? Sanitize::memory
           : value == "unwritten"     ? Sanitize::unwritten
           : value == "unwritten_f32" ? Sanitize::unwritten_f32
                                      : Sanitize::no;
  }();
  return wish;
}

bool gpu_available() {
  static const bool available = !cuda_devices().empty();
  return available;
}

Stream gpu_stream() {
  static const CudaStream stream(0);
  return stream;
}

std::shared_ptr<Allocator> gpu_memory(std::size_t bytes) {
#ifdef WEFT_CUDA
  if (sanitize() != Sanitize::no && sanitize() != Sanitize::races) {
    return std::make_shared<ExactBlocks>(gpu_stream(), sanitize() == Sanitize::memory);
  }
#endif
  return std::make_shared<CudaArena>(gpu_stream(), bytes,
                                     sanitize() == Sanitize::races ? Hygiene::trusting : Hygiene::hostile);
}

}  // namespace weft::testing
