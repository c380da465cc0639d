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
// Rows (of 16-byte pieces) from global to shared memory without waiting; zeros from row n on.
template <int kWidth, int kThreads>
__device__ inline void copy_rows_async(bf16* to, int ld_to, const bf16* from, std::int64_t ld_from, int rows, int n) {
  constexpr int kPieces = kWidth / 8;
  for (int e = threadIdx.x; e < rows * kPieces; e += kThreads) {
    const int i = e / kPieces, x = e % kPieces * 8;
    copy16_async(to + i * ld_to + x, i < n ? from + i * ld_from + x : from, i < n);
  }
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
