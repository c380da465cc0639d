// Device memory and streams.
#pragma once

#include <memory>
#include <string>

#include "autograd/check.h"
#include "autograd/memory.h"

namespace weft {

class DeviceRegion;

// Work on one device in order. Error (config) if the device or its driver does not work with this build.
class CudaStream {
 public:
  explicit CudaStream(int device_index);
  ~CudaStream();
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;
  operator Stream() const { return stream_; }

 private:
  Stream stream_;
};

// Blocks from the driver, one call each: for what lives as long as a model. OutOfGpuMemory that says what was asked,
// what is free and who holds the rest when the device is full.
std::shared_ptr<Allocator> cuda_allocator(int device_index);

// A region of device addresses that serves everything with the life of a step, by the rules of Arena; the device gives
// memory for as much of it as was ever in use. Blocks are used in the order of one stream, so one that is released may
// be handed out again at once. Hostile arenas, for tests, fill new blocks with NaN and check canaries, which waits for
// the stream.
class CudaArena final : public Allocator {
 public:
  CudaArena(const Stream& stream, std::size_t capacity_bytes, Hygiene hygiene = Hygiene::trusting);
  ~CudaArena() override;
  CudaArena(const CudaArena&) = delete;
  CudaArena& operator=(const CudaArena&) = delete;

  // OutOfGpuMemory that says what was asked and what is in use when the arena is full.
  void* allocate(std::size_t bytes) override;
  void release(void* block) noexcept override;
  Device device() const override { return stream_.device; }

 private:
  Stream stream_;
  Hygiene hygiene_;
  std::unique_ptr<DeviceRegion> region_;
  Placement placement_;
};

// Host memory that the device copies from and to without the driver's help; waits for nothing.
std::shared_ptr<Allocator> pinned_allocator();

// What outlives a step on a device: the heap, cuda_allocator, or addresses of a planned device.
std::shared_ptr<Allocator> lasting_memory(const Device& device);

// Bytes that the driver could still give.
std::size_t cuda_free_bytes(int device_index);
// "GPU 0 (NVIDIA H100 80GB HBM3) has 79.10 GiB, of which 2.31 are free; on it: python3 (process 812) 70.20 GiB, ...".
// For messages.
std::string describe_gpu_memory(int device_index);

// A step, or a model, that does not fit into device memory. Whoever knows the recipe says what to change in it.
class OutOfGpuMemory : public Error {
 public:
  explicit OutOfGpuMemory(const std::string& message) : Error(ExitCode::config, message) {}
};

// A GPU, or a kernel on it, that went wrong. Whoever keeps checkpoints says where to go on.
class GpuFailure : public Error {
 public:
  explicit GpuFailure(const std::string& message) : Error(ExitCode::internal, message) {}
};

}  // namespace weft
