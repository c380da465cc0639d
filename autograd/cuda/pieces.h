// Cuts the workspace of a launcher into its arrays, with one function that counts and that cuts.
#pragma once

#include <cstddef>
#include <cstdint>

namespace weft {

// Hands out pieces, each on 256 bytes; with a null base it only counts.
class Pieces {
 public:
  explicit Pieces(void* base) : base_(static_cast<std::byte*>(base)) {}
  template <class T>
  T* take(std::int64_t elements) {
    T* piece = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + bytes_);
    bytes_ += (static_cast<std::size_t>(elements) * sizeof(T) + 255) / 256 * 256;
    return piece;
  }
  std::size_t bytes() const { return bytes_; }

 private:
  std::byte* base_;
  std::size_t bytes_ = 0;
};

}  // namespace weft
