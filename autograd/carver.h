// Cuts a workspace into the arrays that a CPU kernel needs, with one function that counts and that cuts.
#pragma once

#include <cstdint>

namespace weft {

// Hands out pieces of a buffer, each on a cache line; with a null base it only counts.
template <class T>
class Carver {
 public:
  explicit Carver(T* base) : base_(base) {}
  T* take(std::int64_t elements) {
    constexpr std::int64_t kLine = 64 / static_cast<std::int64_t>(sizeof(T));
    T* piece = base_ == nullptr ? nullptr : base_ + used_;
    used_ += (elements + kLine - 1) / kLine * kLine;
    return piece;
  }
  std::int64_t used() const { return used_; }

 private:
  T* base_;
  std::int64_t used_ = 0;
};

}  // namespace weft
