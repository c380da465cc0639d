// A build without CUDA has no device; what needs one says so.
#ifndef WEFT_CUDA

#include "autograd/check.h"
#include "autograd/cuda/cuda_devices.h"
#include "autograd/cuda/cuda_events.h"
#include "autograd/cuda/cuda_graph.h"
#include "autograd/cuda/cuda_memory.h"
#include "autograd/cuda/device_region.h"

namespace weft {
namespace {

[[noreturn]] void no_cuda() {
  config_error("this weft was built without CUDA; build it with `cmake --preset cuda`, or use run.device = \"cpu\"");
}

}  // namespace

std::vector<CudaDeviceInfo> cuda_devices() {
  return {};
}

CudaStream::CudaStream(int) {
  no_cuda();
}
CudaStream::~CudaStream() = default;

std::shared_ptr<Allocator> cuda_allocator(int) {
  no_cuda();
}
std::shared_ptr<Allocator> lasting_memory(const Device& device) {
  if (device.planned()) return std::make_shared<Arena>(device, std::size_t{1} << 32);
  if (device.is_cpu()) return heap_allocator();
  no_cuda();
}
std::shared_ptr<Allocator> pinned_allocator() {
  no_cuda();
}
std::size_t cuda_free_bytes(int) {
  no_cuda();
}

std::string describe_gpu_memory(int) {
  no_cuda();
}

CudaArena::CudaArena(const Stream& stream, std::size_t, Hygiene hygiene)
    : stream_(stream), hygiene_(hygiene), placement_(0) {
  no_cuda();
}
DeviceRegion::~DeviceRegion() = default;
CudaArena::~CudaArena() = default;
void* CudaArena::allocate(std::size_t) {
  no_cuda();
}
void CudaArena::release(void*) noexcept {}

void* create_cuda_event() {
  no_cuda();
}
void destroy_cuda_event(void*) noexcept {}
void record_cuda_event(void*, const Stream&) {
  no_cuda();
}
double seconds_between_cuda_events(void*, void*) {
  no_cuda();
}

CudaGraph::~CudaGraph() = default;
void CudaGraph::record(const Stream&, const std::function<void()>&) {
  no_cuda();
}
void CudaGraph::replay(const Stream&) const {
  no_cuda();
}

}  // namespace weft

#endif
