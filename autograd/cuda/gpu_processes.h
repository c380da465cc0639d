// Who else computes on a GPU, as the driver's management library tells it.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace weft {

struct GpuProcess {
  int id = 0;
  std::string name;  // empty if this machine does not show it, as from inside a container
  std::size_t bytes = 0;
};

// Those with memory of the GPU, this one too, most bytes first. Empty where the library is not there or may not say.
std::vector<GpuProcess> gpu_processes(const std::string& pci_bus_id);

// "python3 (process 812) 70.20 GiB, this process 1.30 GiB"; empty if there are none.
std::string describe_processes(const std::vector<GpuProcess>& processes, int own_id);

}  // namespace weft
