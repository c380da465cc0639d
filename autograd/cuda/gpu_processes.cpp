#include "autograd/cuda/gpu_processes.h"

#include <algorithm>
#include <cstdint>
#include <dlfcn.h>
#include <fmt/format.h>
#include <fstream>
#include <functional>

namespace weft {
namespace {

// The parts of NVML that are asked, declared here because the library comes with the driver and its header does not.
struct ProcessInfo {
  unsigned pid;
  unsigned long long used_bytes;
  unsigned gpu_instance, compute_instance;
};
constexpr int kSuccess = 0;

class Nvml {
 public:
  Nvml() : library_(dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL)) {
    const auto initialise = function<int()>("nvmlInit_v2");
    ready_ = initialise != nullptr && initialise() == kSuccess;
  }
  ~Nvml() {
    if (const auto shut_down = function<int()>("nvmlShutdown"); ready_ && shut_down != nullptr) shut_down();
    if (library_ != nullptr) dlclose(library_);
  }
  Nvml(const Nvml&) = delete;
  Nvml& operator=(const Nvml&) = delete;

  std::vector<ProcessInfo> processes(const std::string& pci_bus_id) const {
    const auto find = function<int(const char*, void**)>("nvmlDeviceGetHandleByPciBusId_v2");
    const auto list = function<int(void*, unsigned*, ProcessInfo*)>("nvmlDeviceGetComputeRunningProcesses_v3");
    void* device = nullptr;
    if (!ready_ || find == nullptr || list == nullptr || find(pci_bus_id.c_str(), &device) != kSuccess) return {};
    std::vector<ProcessInfo> infos(256);
    auto count = static_cast<unsigned>(infos.size());
    if (list(device, &count, infos.data()) != kSuccess) return {};
    infos.resize(count);
    return infos;
  }

 private:
  template <class F>
  F* function(const char* name) const {
    return library_ == nullptr ? nullptr : reinterpret_cast<F*>(dlsym(library_, name));
  }

  void* library_;
  bool ready_ = false;
};

std::string name_of_process(unsigned id) {
  std::ifstream file(fmt::format("/proc/{}/comm", id));
  std::string name;
  std::getline(file, name);
  return name;
}

}  // namespace

std::vector<GpuProcess> gpu_processes(const std::string& pci_bus_id) {
  std::vector<GpuProcess> list;
  for (const ProcessInfo& info : Nvml().processes(pci_bus_id)) {
    // All ones: not told.
    const std::size_t bytes = info.used_bytes == ~0ULL ? 0 : info.used_bytes;
    list.push_back({.id = static_cast<int>(info.pid), .name = name_of_process(info.pid), .bytes = bytes});
  }
  std::ranges::stable_sort(list, std::greater(), &GpuProcess::bytes);
  return list;
}

std::string describe_processes(const std::vector<GpuProcess>& processes, int own_id) {
  std::string text;
  for (const GpuProcess& process : processes) {
    if (!text.empty()) text += ", ";
    text += process.id == own_id   ? std::string("this process")
            : process.name.empty() ? fmt::format("process {}", process.id)
                                   : fmt::format("{} (process {})", process.name, process.id);
    if (process.bytes > 0) text += fmt::format(" {:.2f} GiB", static_cast<double>(process.bytes) / 1073741824.0);
  }
  return text;
}

}  // namespace weft
