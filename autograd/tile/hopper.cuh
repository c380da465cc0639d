// What the primitives of sm_90a share: the guard, barriers between threads and with the copy engine, register budgets.
//
// Code for sm_90a alone compiles to a trap for other targets: the launcher picks another kernel there.
#pragma once

#include "autograd/tile/numeric.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define WEFT_HOPPER 1
#endif

namespace weft::tile {

__device__ inline void unavailable() {
  __trap();
}

// One thread of the warp, the same every time. All 32 lanes call it.
__device__ inline bool elect_one() {
  return (threadIdx.x % kWarp) == 0;
}

// Makes shared memory written by ordinary stores visible to wgmma and to the copy engine; each writing thread calls it
// before the barrier that hands the data over.
__device__ inline void fence_async_shared() {
#ifdef WEFT_HOPPER
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
  unavailable();
#endif
}
// The same for global memory, both ways: between copy-engine traffic and flags that ordinary instructions pass on.
__device__ inline void fence_async_global() {
#ifdef WEFT_HOPPER
  asm volatile("fence.proxy.async.global;" ::: "memory");
#else
  unavailable();
#endif
}

// --- named barriers
// ----------------------------------------------------------------------------------------------------

// Barrier `Id` (1 to 15; 0 is __syncthreads) of `Threads` threads, all of which sync or arrive.
template <int Threads>
__device__ inline void barrier_sync(int id) {
  static_assert(Threads % kWarp == 0 && Threads <= 1024, "whole warps");
  asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(Threads) : "memory");
}
template <int Threads>
__device__ inline void barrier_arrive(int id) {
  static_assert(Threads % kWarp == 0 && Threads <= 1024, "whole warps");
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "n"(Threads) : "memory");
}

// --- mbarrier
// ----------------------------------------------------------------------------------------------------------

// A barrier in shared memory that threads and copies arrive at. It completes a phase when all arrivals and all expected
// bytes are there; waiters name the parity of the phase they wait for.
struct Barrier {
  std::uint64_t state;

  __device__ std::uint32_t address() const { return shared_address(&state); }
  // By one thread; then fence_barrier_init() and a barrier of the block before anyone else touches it.
  __device__ void init(int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address()), "r"(arrivals) : "memory");
  }
  __device__ void arrive() {
#ifdef WEFT_HOPPER
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address()) : "memory");
#else
    unavailable();
#endif
  }
  // One arrival, and `bytes` that copies will bring.
  __device__ void arrive_expect(std::uint32_t bytes) {
#ifdef WEFT_HOPPER
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address()), "r"(bytes) : "memory");
#else
    unavailable();
#endif
  }
  __device__ bool try_wait(std::uint32_t parity) const {
#ifdef WEFT_HOPPER
    std::uint32_t done;
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}\n"
        : "=r"(done)
        : "r"(address()), "r"(parity)
        : "memory");
    return done != 0;
#else
    unavailable();
    return true;
#endif
  }
  __device__ void wait(std::uint32_t parity) const {
    while (!try_wait(parity)) {
    }
  }
};

__device__ inline void fence_barrier_init() {
#ifdef WEFT_HOPPER
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#else
  unavailable();
#endif
}

// Where one side of a ring of `Stages` buffers is. Consumers wait for full[stage] at parity(); producers for
// empty[stage] at parity() ^ 1, which lets the first round through.
template <int Stages>
struct PipelineState {
  int stage = 0;
  std::uint32_t phase = 0;

  __device__ std::uint32_t parity() const { return phase; }
  __device__ void advance() {
    if (++stage == Stages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

// --- registers
// ---------------------------------------------------------------------------------------------------------

// Gives registers back or takes them, for the calling warpgroup; the kernel needs __launch_bounds__(threads, 1).
template <int Registers>
__device__ inline void shrink_registers() {
  static_assert(Registers % 8 == 0 && Registers >= 24 && Registers <= 256, "multiples of 8 in [24, 256]");
#ifdef WEFT_HOPPER
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
#else
  unavailable();
#endif
}
template <int Registers>
__device__ inline void grow_registers() {
  static_assert(Registers % 8 == 0 && Registers >= 24 && Registers <= 256, "multiples of 8 in [24, 256]");
#ifdef WEFT_HOPPER
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
#else
  unavailable();
#endif
}

}  // namespace weft::tile
