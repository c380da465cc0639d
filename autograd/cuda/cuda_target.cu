#include <algorithm>
#include <cstdlib>
#include <dlfcn.h>
#include <string_view>

#include "autograd/cuda/cuda_check.cuh"
#include "autograd/cuda/cuda_target.h"

namespace weft {
namespace {

#ifdef WEFT_HOPPER_KERNELS
constexpr bool kBuiltForHopper = true;
#else
constexpr bool kBuiltForHopper = false;
#endif
// Of a block on devices of compute capability 8.0 and 9.0.
constexpr std::size_t kSharedOf80 = std::size_t{163} << 10, kSharedOf90 = std::size_t{227} << 10;

bool portable_only() {
  const char* wish = std::getenv("WEFT_PORTABLE_KERNELS");
  return wish != nullptr && std::string_view(wish) != "0" && std::string_view(wish) != "";
}

struct Target {
  bool hopper = kBuiltForHopper && !portable_only();
  std::size_t shared_bytes = kSharedOf90;

  Target() {
    int count = 0;
    const bool here = cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
    (void)cudaGetLastError();
    if (here) {
      int device = 0, major = 0, bytes = 0;
      WEFT_CUDA_CALL(cudaGetDevice(&device));
      WEFT_CUDA_CALL(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
      WEFT_CUDA_CALL(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
      hopper = hopper && major == 9;
      shared_bytes = static_cast<std::size_t>(bytes);
    }
    if (portable_only()) shared_bytes = std::min(shared_bytes, kSharedOf80);
  }
};

const Target& target() {
  static const Target found;
  return found;
}

}  // namespace

int installed_driver() {
  int version = 0;
  if (cudaDriverGetVersion(&version) == cudaSuccess && version != 0) return version;
  (void)cudaGetLastError();
  void* const library = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
  if (library == nullptr) return 0;
  const auto ask = reinterpret_cast<int (*)(int*)>(dlsym(library, "cuDriverGetVersion"));
  if (ask == nullptr || ask(&version) != 0) version = 0;
  (void)dlclose(library);
  return version;
}

bool hopper_kernels() {
  return target().hopper;
}

std::size_t shared_bytes_of_block() {
  return target().shared_bytes;
}

}  // namespace weft
