#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <unistd.h>
#include <unordered_map>

#include "autograd/check.h"
#include "autograd/cuda/cuda_check.cuh"
#include "autograd/cuda/cuda_memory.h"
#include "autograd/cuda/device_region.h"
#include "autograd/cuda/gpu_processes.h"

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
    throw OutOfGpuMemory(
        format_text("{:.2f} GiB asked in one piece. {}", gib(bytes), describe_gpu_memory(device_index)));
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
    const cudaError_t status = cudaMallocHost(&block, padded_block(bytes, Hygiene::trusting));
    if (status == cudaErrorMemoryAllocation) {
      (void)cudaGetLastError();
      config_error(
          "{:.2f} GiB of this machine's own memory could not be set aside for copies to the GPU; `ulimit -l` "
          "and the memory limit of a container bound it",
          gib(bytes));
    }
    WEFT_CUDA_CALL(status);
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

std::string describe_gpu_memory(int device_index) {
  std::string text = format_text("GPU {}", device_index);
  cudaDeviceProp properties{};
  if (cudaGetDeviceProperties(&properties, device_index) == cudaSuccess) {
    text +=
        format_text(" ({}) has {:.2f} GiB", static_cast<const char*>(properties.name), gib(properties.totalGlobalMem));
  }
  // On a GPU that others have filled this process may not even get a context of its own.
  std::size_t available = 0, total = 0;
  const bool told = cudaSetDevice(device_index) == cudaSuccess && cudaMemGetInfo(&available, &total) == cudaSuccess;
  text += told ? format_text(", of which {:.2f} are free", gib(available)) : ", none of it for this process";
  std::array<char, 32> bus{};
  if (cudaDeviceGetPCIBusId(bus.data(), static_cast<int>(bus.size()), device_index) == cudaSuccess) {
    const std::string holders = describe_processes(gpu_processes(bus.data()), getpid());
    if (!holders.empty()) text += "; on it: " + holders;
  }
  (void)cudaGetLastError();
  return text;
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
    throw OutOfGpuMemory(
        format_text("GPU {}: {:.2f} GiB asked beside {:.2f} in use, of {:.2f} GiB that are left for what a step needs",
                    stream_.device.index, gib(bytes), gib(stats_.current_bytes), gib(placement_.capacity())));
  }
  if (!region_->commit(*offset + padded)) {
    placement_.give(*offset);
    throw OutOfGpuMemory(format_text("{:.2f} GiB asked beside {:.2f} that the step holds. {}", gib(bytes),
                                     gib(region_->committed()), describe_gpu_memory(stream_.device.index)));
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
