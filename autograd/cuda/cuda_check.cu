#include <string>

#include "autograd/check.h"
#include "autograd/cuda/cuda_check.cuh"
#include "autograd/cuda/cuda_memory.h"
#include "autograd/cuda/cuda_target.h"

namespace weft::detail {
namespace {

std::string version_text(int version) {
  return format_text("{}.{}", version / 1000, version % 1000 / 10);
}

[[noreturn]] void driver_too_old(int driver) {
  config_error(
      "the NVIDIA driver of this machine serves CUDA up to {0}, and this weft was built with CUDA {1}: install a newer "
      "driver (nvidia-smi shows the one that is there), build weft with the toolkit of CUDA {0} or earlier, or use "
      "run.device = \"cpu\"",
      version_text(driver), version_text(CUDART_VERSION));
}

// Never throws itself: it is asked when things have gone wrong.
std::string device_text() {
  int device = 0;
  cudaDeviceProp properties{};
  if (cudaGetDevice(&device) != cudaSuccess || cudaGetDeviceProperties(&properties, device) != cudaSuccess) {
    return "the GPU";
  }
  return format_text("GPU {} ({}, compute capability {}.{})", device, static_cast<const char*>(properties.name),
                     properties.major, properties.minor);
}

std::string architecture_wanted() {
  int device = 0, major = 0, minor = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess) {
    return "native";
  }
  return format_text("{}{}{}", major, minor, major == 9 ? "a" : "");
}

void fail_setup(cudaError_t status, const std::string& said, const std::string& where) {
  switch (status) {
    case cudaErrorNoDevice:
      config_error("{}; nvidia-smi lists the GPUs that this machine shows; use run.device = \"cpu\" without one", said);
    case cudaErrorInsufficientDriver: {
      if (const int driver = installed_driver(); driver != 0) driver_too_old(driver);
      config_error(
          "this machine, or this container, has no NVIDIA driver (nvidia-smi would show it); use run.device = \"cpu\"");
    }
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
      config_error(
          "{}: this weft was built for other GPUs (WEFT_CUDA_ARCHS = {}): configure with -DWEFT_CUDA_ARCHS={} and "
          "build again, or use run.device = \"cpu\"",
          device_text(), WEFT_CUDA_ARCHS_TEXT, architecture_wanted());
    case cudaErrorSystemDriverMismatch:
      config_error("{}; the driver was renewed while its old part is still loaded: restart the machine", said);
    case cudaErrorSystemNotReady:
      config_error("{}; a machine of several GPUs joined by switches needs its fabric manager running", said);
    case cudaErrorDevicesUnavailable:
      config_error(
          "{}; another process holds the GPU for itself (nvidia-smi lists it), or its compute mode forbids new ones",
          said);
    case cudaErrorInvalidDevice:
      config_error("{} at {}; this machine does not show the GPU that was asked for (nvidia-smi, CUDA_VISIBLE_DEVICES)",
                   said, where);
    default:
      return;
  }
}

}  // namespace

void cuda_failed(cudaError_t status, const char* call, const char* file, int line) {
  const std::string said = format_text("CUDA: {} ({})", cudaGetErrorString(status), cudaGetErrorName(status));
  (void)cudaGetLastError();  // what can be forgotten is
  const std::string where = format_text("{}:{}: {}", file, line, call);
  fail_setup(status, said, where);
  switch (status) {
    case cudaErrorMemoryAllocation:
      throw OutOfGpuMemory(format_text("no memory left for {}. {}", where, describe_gpu_memory(0)));
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorContained:
    case cudaErrorTensorMemoryLeak:
    case cudaErrorLaunchTimeout:
    case cudaErrorDeviceUninitialized:
    case cudaErrorUnknown:
      throw GpuFailure(format_text(
          "the GPU failed: {}, noticed at {}. `nvidia-smi -q -d ECC,ROW_REMAPPER` and the lines with Xid in "
          "`dmesg` say more; reset or replace it",
          said, where));
    case cudaErrorIllegalAddress:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorHardwareStackError:
    case cudaErrorAssert:
      throw GpuFailure(format_text(
          "a kernel went wrong on the GPU: {}, noticed at {}, so the kernel may be an earlier one. This is a defect of "
          "weft, or of the GPU if `dmesg` has lines with Xid: with CUDA_LAUNCH_BLOCKING=1 and run.cuda_graphs = false "
          "the place is the right one, and `compute-sanitizer weft ...` names the access",
          said, where));
    default:
      fail(ExitCode::internal, "{} failed: {}", where, said);
  }
}

}  // namespace weft::detail
