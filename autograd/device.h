// Devices, streams, and what every kernel launcher receives.
#pragma once

#include <cstddef>
#include <cstdint>

namespace weft {

enum class DeviceKind : std::uint8_t { cpu, cuda };

struct Device {
  // The index of a device that is not there: tensors on it have addresses but no content, and kernels are not launched.
  // A step on it takes the memory that the step of a real device would take.
  static constexpr std::int16_t kPlanned = -1;

  DeviceKind kind = DeviceKind::cpu;
  std::int16_t index = 0;
  bool operator==(const Device&) const = default;
  bool is_cpu() const { return kind == DeviceKind::cpu; }
  bool planned() const { return index == kPlanned; }
};

// An ordered queue of work. On the CPU work happens at once and the handle is null; on CUDA it is a cudaStream_t.
struct Stream {
  Device device;
  void* handle = nullptr;
};

// The second argument of every launcher: where to run, and scratch memory whose content is undefined on entry and exit.
// Launchers neither allocate nor synchronise; `<op>_workspace` functions say how many bytes they need.
struct Launch {
  Stream stream;
  void* workspace = nullptr;
  std::size_t workspace_bytes = 0;
};

}  // namespace weft
