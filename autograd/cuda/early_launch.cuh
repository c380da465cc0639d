// Kernels that start while the one before them in the stream still runs (programmatic dependent launch, from sm_90 on;
// elsewhere they start after it as ever). What they do before wait_for_earlier_kernels() must not depend on other
// kernels; a kernel launched so must wait, so that the one after it can rely on all that came before.
#pragma once

#include "autograd/cuda/cuda_check.cuh"
#include "autograd/cuda/cuda_target.h"

namespace weft {

// Until the kernels before this one have ended and what they wrote can be read.
__device__ inline void wait_for_earlier_kernels() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next kernel may start once all blocks have come here or ended, and finds room.
__device__ inline void let_next_kernel_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

template <class... Parameters, class... Arguments>
void launch_early(void (*kernel)(Parameters...), dim3 grid, unsigned threads, cudaStream_t stream,
                  const Arguments&... arguments) {
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = hopper_kernels() ? 1 : 0;
  WEFT_CUDA_CALL(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...));
}

}  // namespace weft
