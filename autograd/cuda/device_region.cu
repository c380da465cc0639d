#include <algorithm>

#include "autograd/cuda/device_region.h"
#include "autograd/cuda/driver_function.cuh"

namespace weft {
namespace {

// A multiple of every device's granularity (2 MiB so far), large enough that a step's first run asks the driver a few
// hundred times at most.
constexpr std::size_t kPiece = std::size_t{64} << 20;

std::size_t whole_pieces(std::size_t bytes) {
  return (bytes + kPiece - 1) / kPiece * kPiece;
}

struct Driver {
  decltype(&cuMemAddressReserve) reserve = WEFT_DRIVER_FUNCTION(cuMemAddressReserve, 10020);
  decltype(&cuMemAddressFree) unreserve = WEFT_DRIVER_FUNCTION(cuMemAddressFree, 10020);
  decltype(&cuMemCreate) create = WEFT_DRIVER_FUNCTION(cuMemCreate, 10020);
  decltype(&cuMemRelease) release = WEFT_DRIVER_FUNCTION(cuMemRelease, 10020);
  decltype(&cuMemMap) map = WEFT_DRIVER_FUNCTION(cuMemMap, 10020);
  decltype(&cuMemUnmap) unmap = WEFT_DRIVER_FUNCTION(cuMemUnmap, 10020);
  decltype(&cuMemSetAccess) set_access = WEFT_DRIVER_FUNCTION(cuMemSetAccess, 10020);
};

const Driver& driver() {
  static const Driver functions;
  return functions;
}

CUdeviceptr address(const std::byte* p) {
  return reinterpret_cast<CUdeviceptr>(p);
}

void check(CUresult result, const char* what) {
  if (result != CUDA_SUCCESS) {
    fail(ExitCode::internal, "{}: the CUDA driver answers error {}", what, static_cast<int>(result));
  }
}

}  // namespace

DeviceRegion::DeviceRegion(int device_index, std::size_t bytes)
    : device_index_(device_index), capacity_(whole_pieces(std::max<std::size_t>(bytes, 1))) {
  WEFT_CUDA_CALL(cudaSetDevice(device_index));
  WEFT_CUDA_CALL(cudaFree(nullptr));  // has the driver open the device
  CUdeviceptr base = 0;
  const CUresult result = driver().reserve(&base, capacity_, 0, 0, 0);
  if (result != CUDA_SUCCESS) {
    config_error("GPU {}: the driver reserves no addresses (error {}); weft needs a GPU with virtual memory management",
                 device_index, static_cast<int>(result));
  }
  base_ = reinterpret_cast<std::byte*>(base);
}

DeviceRegion::~DeviceRegion() {
  // Unmapping waits for no kernel. At exit the driver may be gone; what it answers changes nothing.
  (void)cudaDeviceSynchronize();
  for (std::size_t i = 0; i < pieces_.size(); ++i) {
    (void)driver().unmap(address(base_ + i * kPiece), kPiece);
    (void)driver().release(pieces_[i]);
  }
  (void)driver().unreserve(address(base_), capacity_);
}

bool DeviceRegion::commit(std::size_t bytes) {
  if (bytes <= committed_) return true;
  WEFT_CHECK(bytes <= capacity_, "a region of {} bytes asked for {}", capacity_, bytes);
  WEFT_CUDA_CALL(cudaSetDevice(device_index_));
  const CUmemLocation here{.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device_index_};
  CUmemAllocationProp piece{};
  piece.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  piece.location = here;
  const std::size_t before = pieces_.size();
  while (pieces_.size() * kPiece < bytes) {
    CUmemGenericAllocationHandle handle = 0;
    const CUresult result = driver().create(&handle, kPiece, &piece, 0);
    if (result == CUDA_ERROR_OUT_OF_MEMORY) {
      for (; pieces_.size() > before; pieces_.pop_back()) {
        (void)driver().unmap(address(base_ + (pieces_.size() - 1) * kPiece), kPiece);
        (void)driver().release(pieces_.back());
      }
      return false;
    }
    check(result, "memory for a step");
    const CUresult mapped = driver().map(address(base_ + pieces_.size() * kPiece), kPiece, 0, handle, 0);
    if (mapped != CUDA_SUCCESS) (void)driver().release(handle);
    check(mapped, "mapping a step's memory");
    pieces_.push_back(handle);
  }
  const std::size_t now = pieces_.size() * kPiece;
  const CUmemAccessDesc access{.location = here, .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
  check(driver().set_access(address(base_ + committed_), now - committed_, &access, 1), "opening a step's memory");
  committed_ = now;
  return true;
}

}  // namespace weft
