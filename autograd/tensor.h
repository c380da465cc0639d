// Tensor: a typed, contiguous, row-major array in some device's memory. Copies share storage.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "autograd/dtype.h"
#include "autograd/memory.h"
#include "autograd/shape.h"

namespace weft {

class Tensor {
 public:
  Tensor() = default;

  // Content is undefined. The allocator outlives the tensor (the tensor keeps it alive).
  Tensor(const Shape& shape, DType dtype, std::shared_ptr<Allocator> memory);

  // Long-lived host tensors.
  static Tensor empty(const Shape& shape, DType dtype);
  static Tensor zeros(const Shape& shape, DType dtype);
  template <class T>
  static Tensor from(const Shape& shape, std::span<const T> values);
  template <class T>
  static Tensor from(const Shape& shape, const std::vector<T>& values) {
    return from(shape, std::span<const T>(values));
  }

  bool defined() const { return storage_ != nullptr; }
  const Shape& shape() const { return shape_; }
  std::int64_t dim(int i) const { return shape_[i]; }
  int rank() const { return shape_.rank(); }
  std::int64_t numel() const { return shape_.numel(); }
  std::size_t nbytes() const { return static_cast<std::size_t>(numel()) * size_of(dtype_); }
  DType dtype() const { return dtype_; }
  Device device() const;
  // True if another tensor shares this storage, so that writing here would be seen there.
  bool shares_storage() const { return storage_.use_count() > 1; }

  // For recomputation. What storage this is, how many tensors share it, and its size.
  const void* storage() const { return storage_.get(); }
  std::int64_t storage_owners() const { return storage_.use_count(); }
  std::size_t storage_bytes() const;
  // Gives the memory of the storage, if any, back for all who share it. Until restore_memory() nobody may ask for the
  // data; after it, the content is undefined and may be elsewhere.
  void drop_memory() const;
  void restore_memory() const;

  void* raw() const;
  template <class T>
  T* data() const {
    WEFT_CHECK(dtype_ == dtype_of<T>, "tensor of {} read as {}", name_of(dtype_), name_of(dtype_of<T>));
    return static_cast<T*>(raw());
  }
  template <class T>
  std::span<T> span() const {
    return {data<T>(), static_cast<std::size_t>(numel())};
  }

  // Same elements, another shape.
  Tensor reshape(const Shape& shape) const;
  // Rows [begin, end) along the first dimension, as a view.
  Tensor rows(std::int64_t begin, std::int64_t end) const;

  void fill_zero() const;
  // Element-wise copy with conversion between floating types; shapes must hold the same number of elements. Host only.
  void copy_from(const Tensor& source) const;
  // A host tensor with the same content and storage of its own; undefined if this one is.
  Tensor clone() const;

 private:
  struct Storage;
  std::shared_ptr<Storage> storage_;
  std::size_t offset_bytes_ = 0;
  Shape shape_;
  DType dtype_ = DType::f32;
};

}  // namespace weft
