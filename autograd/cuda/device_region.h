// Addresses of a device that get memory behind them as they are used.
#pragma once

#include <cstddef>
#include <vector>

namespace weft {

class DeviceRegion {
 public:
  // Reserves addresses, which takes no memory. Error (config) if the driver cannot map memory to addresses.
  DeviceRegion(int device_index, std::size_t bytes);
  ~DeviceRegion();
  DeviceRegion(const DeviceRegion&) = delete;
  DeviceRegion& operator=(const DeviceRegion&) = delete;

  std::byte* base() const { return base_; }
  // Has memory behind the first `bytes` of the region; false, with nothing changed, where the device is full. Does not
  // wait for the device, and may be called while a graph is recorded.
  bool commit(std::size_t bytes);
  std::size_t committed() const { return committed_; }

 private:
  int device_index_;
  std::size_t capacity_ = 0;  // whole pieces
  std::size_t committed_ = 0;
  std::byte* base_ = nullptr;
  std::vector<unsigned long long> pieces_;  // CUmemGenericAllocationHandle, in order of address
};

}  // namespace weft
