// Functions of libcuda, asked of the driver at run time, so that weft starts on machines that have none.
#pragma once

#include <cuda.h>

#include "autograd/check.h"
#include "autograd/cuda/cuda_check.cuh"

namespace weft {

// `version` is the first CUDA that had the function in this form: 12000 for 12.0. Error (config) if this driver does
// not.
template <typename Function>
Function* driver_function(const char* name, unsigned int version) {
  void* address = nullptr;
  cudaDriverEntryPointQueryResult found{};
  WEFT_CUDA_CALL(cudaGetDriverEntryPointByVersion(name, &address, version, cudaEnableDefault, &found));
  if (found != cudaDriverEntryPointSuccess || address == nullptr) {
    config_error("this NVIDIA driver has no {}; weft needs a driver for CUDA {}.{} or later", name, version / 1000,
                 version % 1000 / 10);
  }
  return reinterpret_cast<Function*>(address);
}

}  // namespace weft

#define WEFT_DRIVER_FUNCTION(name, version) ::weft::driver_function<decltype(name)>(#name, version)
