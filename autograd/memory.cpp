#include "autograd/memory.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <sys/mman.h>
#include <unordered_map>

#include "autograd/check.h"

namespace weft {
namespace {

// Canaries sit in the last kBlockAlignment bytes of a hostile block.
constexpr unsigned char kCanary = 0xa5;

std::size_t round_up(std::size_t bytes) {
  return (bytes + kBlockAlignment - 1) / kBlockAlignment * kBlockAlignment;
}

// All bits set is a NaN in every floating-point type and -1 in every integer one.
void poison(void* block, std::size_t padded) {
  std::memset(block, 0xff, padded - kBlockAlignment);
  std::memset(static_cast<std::byte*>(block) + padded - kBlockAlignment, kCanary, kBlockAlignment);
}

void check_canary(const void* block, std::size_t padded) noexcept {
  const auto* canary = static_cast<const unsigned char*>(block) + padded - kBlockAlignment;
  for (std::size_t i = 0; i < kBlockAlignment; ++i) {
    if (canary[i] != kCanary) {
      std::fputs("weft: a kernel wrote past the end of its buffer\n", stderr);
      std::abort();
    }
  }
}

class Heap final : public Allocator {
 public:
  explicit Heap(Hygiene hygiene) : hygiene_(hygiene) {}

  void* allocate(std::size_t bytes) override {
    const std::size_t padded = padded_block(bytes, hygiene_);
    void* block = std::aligned_alloc(kBlockAlignment, padded);
    if (block == nullptr || padded < bytes) fail(ExitCode::internal, "out of host memory: {} bytes requested", bytes);
    if (hygiene_ == Hygiene::hostile) poison(block, padded);
    sizes_.emplace(block, padded);
    stats_.current_bytes += padded;
    stats_.peak_bytes = std::max(stats_.peak_bytes, stats_.current_bytes);
    return block;
  }

  void release(void* block) noexcept override {
    const auto it = sizes_.find(block);
    if (hygiene_ == Hygiene::hostile) check_canary(block, it->second);
    stats_.current_bytes -= it->second;
    sizes_.erase(it);
    std::free(block);
  }

  Device device() const override { return {}; }

 private:
  Hygiene hygiene_;
  std::unordered_map<void*, std::size_t> sizes_;
};

}  // namespace

std::shared_ptr<Allocator> heap_allocator(Hygiene hygiene) {
  return std::make_shared<Heap>(hygiene);
}

std::size_t padded_block(std::size_t bytes, Hygiene hygiene) {
  return round_up(bytes == 0 ? 1 : bytes) + (hygiene == Hygiene::hostile ? kBlockAlignment : 0);
}

std::optional<Placement::Offset> Placement::take(std::size_t bytes) {
  auto best = free_.end();
  for (auto it = free_.begin(); it != free_.end(); ++it) {
    if (it->second >= bytes && (best == free_.end() || it->second < best->second)) best = it;
  }
  if (best == free_.end()) return std::nullopt;
  const auto [offset, extent] = *best;
  free_.erase(best);
  if (extent > bytes) free_.emplace(offset + bytes, extent - bytes);
  used_.emplace(offset, bytes);
  return offset;
}

std::size_t Placement::give(Offset offset) {
  const auto it = used_.find(offset);
  const std::size_t bytes = it->second;
  std::size_t extent = bytes;
  used_.erase(it);
  auto next = free_.lower_bound(offset);
  if (next != free_.end() && offset + extent == next->first) {
    extent += next->second;
    next = free_.erase(next);
  }
  if (next != free_.begin()) {
    const auto previous = std::prev(next);
    if (previous->first + previous->second == offset) {
      previous->second += extent;
      return bytes;
    }
  }
  free_.emplace(offset, extent);
  return bytes;
}

Arena::Arena(std::size_t capacity_bytes, Hygiene hygiene) : hygiene_(hygiene), placement_(round_up(capacity_bytes)) {
  void* region =
      mmap(nullptr, placement_.capacity(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (region == MAP_FAILED) {
    fail(ExitCode::internal, "cannot reserve {} bytes of address space for the arena", placement_.capacity());
  }
  base_ = static_cast<std::byte*>(region);
}

Arena::Arena(const Device& planned, std::size_t capacity_bytes) : Arena(capacity_bytes) {
  WEFT_CHECK(planned.planned(), "an arena of host memory for another device");
  device_ = planned;
}

Arena::~Arena() {
  munmap(base_, placement_.capacity());
}

void* Arena::allocate(std::size_t bytes) {
  const std::size_t padded = padded_block(bytes, hygiene_);
  const auto offset = bytes <= placement_.capacity() ? placement_.take(padded) : std::nullopt;
  if (!offset) {
    fail(ExitCode::internal, "arena full: {} bytes requested, {} of {} in use", bytes, stats_.current_bytes,
         placement_.capacity());
  }
  stats_.take(padded, *offset + padded);
  void* block = base_ + *offset;
  if (hygiene_ == Hygiene::hostile) poison(block, padded);
  return block;
}

void Arena::release(void* block) noexcept {
  const auto offset = static_cast<Placement::Offset>(static_cast<std::byte*>(block) - base_);
  if (hygiene_ == Hygiene::hostile) check_canary(block, placement_.size(offset));
  stats_.current_bytes -= placement_.give(offset);
}

}  // namespace weft
