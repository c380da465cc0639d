// What the GPU of this process runs, for launchers that choose between kernels. Where there is no GPU, as on a machine
// that only plans, it is what a Hopper would say.
#pragma once

#include <cstddef>

namespace weft {

// The kernels for Hopper: this build holds them (90a in WEFT_CUDA_ARCHS) and the device is one. With
// WEFT_PORTABLE_KERNELS=1 in the environment other kernels run in their place, those of a GPU of compute capability
// 8.0: for tests, and to tell whether a kernel for Hopper is at fault.
bool hopper_kernels();

// The CUDA version that the driver of this machine serves, as 13000; 0 without a driver. It may be too old to run this
// build, which is why the driver itself is asked.
int installed_driver();

// Shared memory that a block may ask for.
std::size_t shared_bytes_of_block();

}  // namespace weft
