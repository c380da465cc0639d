#include "train/loop/compute.h"

#include "autograd/cuda/cuda_devices.h"
#include "train/loop/cuda_step.h"
#include "train/loop/machine.h"

namespace weft {
namespace {

// Device memory that the driver, cuBLAS and recorded graphs need beside the arena.
constexpr std::size_t kReserve = std::size_t{768} << 20;

bool use_gpu(const RunSection& run, const std::vector<CudaDeviceInfo>& devices, const World& world,
             const std::string& asked) {
  if (run.device == DeviceChoice::cpu) return false;
  if (world.size() > 1) {
    if (run.device == DeviceChoice::automatic) return false;
    config_error("{} with {} ranks: this version computes on one GPU; start one rank, or use \"cpu\"", asked,
                 world.size());
  }
  if (!devices.empty()) return true;
  if (run.device == DeviceChoice::automatic) return false;
#ifdef WEFT_CUDA
  config_error("{}, but this machine shows no NVIDIA GPU (nvidia-smi lists them); use \"cpu\"", asked);
#else
  config_error("{}, but this weft was built without CUDA; build it with `cmake --preset cuda`, or use \"cpu\"", asked);
#endif
}

}  // namespace

Compute::Compute(const RunSection& run, const World& world, const std::string& asked) {
  const std::vector<CudaDeviceInfo> devices =
      run.device == DeviceChoice::cpu ? std::vector<CudaDeviceInfo>{} : cuda_devices();
  if (!use_gpu(run, devices, world, asked)) {
    if (run.precision == Precision::bf16) {
      config_error("run.precision = \"bf16\" is for GPUs; the CPU computes in fp32: use \"auto\" or \"fp32\"");
    }
    place_ = cpu_place(DType::f32, std::make_shared<Arena>(physical_memory_bytes()));
    description_ = "CPU, fp32";
    return;
  }
  place_.dtype = run.precision == Precision::fp32 ? DType::f32 : DType::bf16;
  stream_.emplace(0);
  place_.stream = *stream_;
  place_.lasting = cuda_allocator(0);
  const CudaDeviceInfo& device = devices.front();
  description_ = fmt::format("{}, {}", device.name, place_.dtype == DType::f32 ? "fp32" : "bf16");
}

double Compute::measure_matrix_rate() const {
  return place_.on_cpu() ? weft::measure_matrix_rate() : measure_cuda_matrix_rate(place_);
}

void Compute::open_arena(std::size_t lasting_bytes, const char* what) {
  if (place_.on_cpu()) return;
  const int device = place_.stream.device.index;
  const std::size_t available = cuda_free_bytes(device);
  const std::size_t taken = lasting_bytes + kReserve;
  if (available <= taken + kReserve) {
    throw OutOfGpuMemory(fmt::format("{:.2f} GiB asked for {}, which leaves too little for a step. {}",
                                     static_cast<double>(lasting_bytes) / 1073741824.0, what,
                                     describe_gpu_memory(device)));
  }
  place_.arena = std::make_shared<CudaArena>(place_.stream, (available - taken) / kBlockAlignment * kBlockAlignment);
}

}  // namespace weft
