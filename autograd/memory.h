// Allocators: the arena that serves a training step, and plain heap memory for what lives longer.
#pragma once

#include <algorithm>
#include <cstddef>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "autograd/device.h"

namespace weft {

// Fill new blocks with NaN bytes, surround them with canaries and check those on release. For tests.
enum class Hygiene { trusting, hostile };

struct MemoryStats {
  std::size_t current_bytes = 0;
  std::size_t peak_bytes = 0;
  // Of an arena: what it takes of its device, up to the end of the last block ever placed; gaps between blocks count.
  std::size_t extent_bytes = 0;

  void take(std::size_t bytes, std::size_t end) {
    current_bytes += bytes;
    peak_bytes = std::max(peak_bytes, current_bytes);
    extent_bytes = std::max(extent_bytes, end);
  }
};

// Hands out blocks of one device's memory, aligned to 256 bytes. Not thread-safe: one allocator belongs to one rank's
// main thread.
class Allocator {
 public:
  virtual ~Allocator() = default;
  virtual void* allocate(std::size_t bytes) = 0;
  virtual void release(void* block) noexcept = 0;
  virtual Device device() const = 0;
  const MemoryStats& stats() const { return stats_; }
  void reset_peak() { stats_.peak_bytes = stats_.current_bytes; }

 protected:
  MemoryStats stats_;
};

// Host memory from the C++ heap.
std::shared_ptr<Allocator> heap_allocator(Hygiene hygiene = Hygiene::trusting);

// Blocks of a region, placed best-fit, lowest offset first: the same sequence of requests gets the same offsets, which
// is what a captured graph needs.
class Placement {
 public:
  using Offset = std::size_t;
  explicit Placement(std::size_t capacity) : capacity_(capacity) { free_.emplace(0, capacity); }

  std::size_t capacity() const { return capacity_; }
  // Where a block of `bytes` goes; nothing if no gap is large enough.
  std::optional<Offset> take(std::size_t bytes);
  // Gives a block back and returns its size.
  std::size_t give(Offset offset);
  // Of a block in use.
  std::size_t size(Offset offset) const { return used_.at(offset); }

 private:
  std::size_t capacity_;
  std::map<Offset, std::size_t> free_;  // offset -> bytes, coalesced
  std::map<Offset, std::size_t> used_;
};

// What every allocator adds to a request: blocks start at multiples of 256 bytes; hostile ones end with a canary.
inline constexpr std::size_t kBlockAlignment = 256;
std::size_t padded_block(std::size_t bytes, Hygiene hygiene);

// A region of host address space, reserved once and committed as it is touched. Throws Error (internal) naming request,
// use and capacity when the region is full.
class Arena final : public Allocator {
 public:
  explicit Arena(std::size_t capacity_bytes, Hygiene hygiene = Hygiene::trusting);
  // Addresses for a planned device: they are never touched, so the capacity may exceed the memory of this machine.
  Arena(const Device& planned, std::size_t capacity_bytes);
  ~Arena() override;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  void* allocate(std::size_t bytes) override;
  void release(void* block) noexcept override;
  Device device() const override { return device_; }

 private:
  std::byte* base_ = nullptr;
  Device device_;
  Hygiene hygiene_;
  Placement placement_;
};

}  // namespace weft
