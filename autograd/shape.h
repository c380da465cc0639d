// The shape of a tensor: up to five extents, slowest first.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "autograd/check.h"

namespace weft {

class Shape {
 public:
  static constexpr int max_rank = 5;

  Shape() = default;
  Shape(std::initializer_list<std::int64_t> dims) {
    for (const std::int64_t d : dims) push_back(d);
  }

  int rank() const { return rank_; }
  // Negative indices count from the end.
  std::int64_t operator[](int i) const {
    const int j = i < 0 ? i + rank_ : i;
    WEFT_CHECK(j >= 0 && j < rank_, "dimension {} of a tensor of rank {}", i, rank_);
    return dims_[static_cast<std::size_t>(j)];
  }
  std::int64_t back() const { return (*this)[-1]; }
  void set(int i, std::int64_t extent) {
    WEFT_CHECK(i >= 0 && i < rank_ && extent >= 0, "dimension {} := {} of a tensor of rank {}", i, extent, rank_);
    dims_[static_cast<std::size_t>(i)] = extent;
  }
  void push_back(std::int64_t extent) {
    WEFT_CHECK(rank_ < max_rank && extent >= 0, "extent {} as dimension {}", extent, rank_);
    dims_[static_cast<std::size_t>(rank_++)] = extent;
  }
  std::int64_t numel() const {
    std::int64_t n = 1;
    for (int i = 0; i < rank_; ++i) n *= dims_[static_cast<std::size_t>(i)];
    return n;
  }
  // Product of all extents but the last: the number of rows when the last dimension is a vector.
  std::int64_t rows() const {
    std::int64_t n = 1;
    for (int i = 0; i + 1 < rank_; ++i) n *= dims_[static_cast<std::size_t>(i)];
    return n;
  }

  const std::int64_t* begin() const { return dims_.data(); }
  const std::int64_t* end() const { return dims_.data() + rank_; }
  bool operator==(const Shape&) const = default;

  std::string str() const {
    std::string s = "[";
    for (int i = 0; i < rank_; ++i) s += (i ? ", " : "") + std::to_string(dims_[static_cast<std::size_t>(i)]);
    return s + "]";
  }

 private:
  std::array<std::int64_t, max_rank> dims_{};
  int rank_ = 0;
};

}  // namespace weft
