// cp.async (sm_80 and later): 16 bytes from global to shared memory without passing through registers.
#pragma once

#include "autograd/tile/numeric.cuh"

namespace weft::tile {

// Copies 16 bytes, or writes 16 zero bytes and reads nothing where `valid` is false. Both addresses 16-byte aligned.
__device__ inline void copy16_async(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
}
__device__ inline void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Returns when at most `Pending` of this thread's latest groups are under way; a barrier then shows the data to others.
template <int Pending>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

}  // namespace weft::tile
