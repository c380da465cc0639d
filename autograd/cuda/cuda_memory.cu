#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <unordered_map>

#include "autograd/check.h"
#include "autograd/cuda/cuda_check.cuh"
#include "autograd/cuda/cuda_memory.h"
#include "autograd/cuda/device_region.h"

namespace weft {
namespace {

constexpr int kCanary = 0xa5;

double gib(std::size_t bytes) {
  return static_cast<double>(bytes) / (1024.0 * 1024.0 * 1024.0);
}

void* device_block(int device_index, std::size_t bytes) {
  WEFT_CUDA_CALL(cudaSetDevice(device_index));
  void* block = nullptr;
  const cudaError_t status = cudaMalloc(&block, bytes);
  if (status == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    config_error("GPU {}: {:.2f} GiB asked, {:.2f} GiB free; use a smaller model or batch, or recomputation",
                 device_index, gib(bytes), gib(cuda_free_bytes(device_index)));
  }
  WEFT_CUDA_CALL(status);
  return block;
}

class DeviceHeap final : public Allocator {
 public:
  explicit DeviceHeap(int device_index) : device_index_(device_index) {}

  void* allocate(std::size_t bytes) override {
    const std::size_t padded = padded_block(bytes, Hygiene::trusting);
    void* block = device_block(device_index_, padded);
    sizes_.emplace(block, padded);
    stats_.current_bytes += padded;
    stats_.peak_bytes = std::max(stats_.peak_bytes, stats_.current_bytes);
    return block;
  }

  void release(void* block) noexcept override {
    const auto it = sizes_.find(block);
    stats_.current_bytes -= it->second;
    sizes_.erase(it);
    (void)cudaFree(block);  // at exit the driver may be gone
  }

  Device device() const override { return {DeviceKind::cuda, static_cast<std::int16_t>(device_index_)}; }

 private:
  int device_index_;
  std::unordered_map<void*, std::size_t> sizes_;
};

class PinnedHeap final : public Allocator {
 public:
  void* allocate(std::size_t bytes) override {
    void* block = nullptr;
    WEFT_CUDA_CALL(cudaMallocHost(&block, padded_block(bytes, Hygiene::trusting)));
    return block;
  }
  void release(void* block) noexcept override { (void)cudaFreeHost(block); }
  Device device() const override { return {}; }
};

}  // namespace

std::shared_ptr<Allocator> pinned_allocator() {
  return std::make_shared<PinnedHeap>();
}

CudaStream::CudaStream(int device_index) {
  WEFT_CUDA_CALL(cudaSetDevice(device_index));
  cudaStream_t handle = nullptr;
  WEFT_CUDA_CALL(cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking));
  stream_ = {.device = {DeviceKind::cuda, static_cast<std::int16_t>(device_index)}, .handle = handle};
}

CudaStream::~CudaStream() {
  (void)cudaStreamDestroy(cuda_stream(stream_));
}

std::shared_ptr<Allocator> cuda_allocator(int device_index) {
  return std::make_shared<DeviceHeap>(device_index);
}

std::shared_ptr<Allocator> lasting_memory(const Device& device) {
  if (device.planned()) return std::make_shared<Arena>(device, std::size_t{1} << 32);
  if (device.is_cpu()) return heap_allocator();
  return cuda_allocator(device.index);
}

std::size_t cuda_free_bytes(int device_index) {
  WEFT_CUDA_CALL(cudaSetDevice(device_index));
  std::size_t available = 0, total = 0;
  WEFT_CUDA_CALL(cudaMemGetInfo(&available, &total));
  return available;
}

CudaArena::CudaArena(const Stream& stream, std::size_t capacity_bytes, Hygiene hygiene)
    : stream_(stream),
      hygiene_(hygiene),
      region_(std::make_unique<DeviceRegion>(stream.device.index, capacity_bytes)),
      placement_(capacity_bytes) {}

CudaArena::~CudaArena() = default;

void* CudaArena::allocate(std::size_t bytes) {
  const std::size_t padded = padded_block(bytes, hygiene_);
  const auto offset = bytes <= placement_.capacity() ? placement_.take(padded) : std::nullopt;
  if (!offset) {
    config_error(
        "GPU {}: the step needs {:.2f} GiB more beside {:.2f} of the {:.2f} GiB that are left for activations; use a "
        "smaller micro-batch, or recomputation (model.recompute)",
        stream_.device.index, gib(bytes), gib(stats_.current_bytes), gib(placement_.capacity()));
  }
  if (!region_->commit(*offset + padded)) {
    placement_.give(*offset);
    config_error(
        "GPU {}: the step needs {:.2f} GiB more beside the {:.2f} that its activations hold, and {:.2f} GiB are free; "
        "use a smaller micro-batch, or recomputation (model.recompute), or end the other programs on this GPU",
        stream_.device.index, gib(bytes), gib(region_->committed()), gib(cuda_free_bytes(stream_.device.index)));
  }
  stats_.take(padded, *offset + padded);
  std::byte* block = region_->base() + *offset;
  if (hygiene_ == Hygiene::hostile) {
    const std::size_t body = padded - kBlockAlignment;
    WEFT_CUDA_CALL(cudaMemsetAsync(block, 0xff, body, cuda_stream(stream_)));
    WEFT_CUDA_CALL(cudaMemsetAsync(block + body, kCanary, kBlockAlignment, cuda_stream(stream_)));
  }
  return block;
}

void CudaArena::release(void* block) noexcept {
  auto* bytes = static_cast<std::byte*>(block);
  const auto offset = static_cast<Placement::Offset>(bytes - region_->base());
  if (hygiene_ == Hygiene::hostile) {
    std::array<unsigned char, kBlockAlignment> canary{};
    const std::size_t body = placement_.size(offset) - kBlockAlignment;
    const cudaError_t status =
        cudaMemcpyAsync(canary.data(), bytes + body, kBlockAlignment, cudaMemcpyDeviceToHost, cuda_stream(stream_));
    const bool intact = status != cudaSuccess || cudaStreamSynchronize(cuda_stream(stream_)) != cudaSuccess ||
                        std::ranges::all_of(canary, [](unsigned char c) { return c == kCanary; });
    if (!intact) {
      std::fputs("weft: a CUDA kernel wrote past the end of its buffer\n", stderr);
      std::abort();
    }
  }
  stats_.current_bytes -= placement_.give(offset);
}

}  // namespace weft
