#include "autograd/tensor.h"

#include <cstring>

namespace weft {

struct Tensor::Storage {
  Storage(std::size_t size, std::shared_ptr<Allocator> allocator)
      : memory(std::move(allocator)), bytes(size), block(memory->allocate(bytes)) {}
  ~Storage() { drop(); }
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  void drop() {
    if (block != nullptr) memory->release(block);
    block = nullptr;
  }

  std::shared_ptr<Allocator> memory;
  std::size_t bytes;
  void* block;
};

namespace {

// Long-lived tensors may be made and released on any thread, so their allocator keeps no books.
const std::shared_ptr<Allocator>& long_lived_memory() {
  struct Malloc final : Allocator {
    void* allocate(std::size_t bytes) override {
      void* block = std::aligned_alloc(256, (bytes + 256) / 256 * 256);
      if (block == nullptr) fail(ExitCode::internal, "out of host memory: {} bytes requested", bytes);
      return block;
    }
    void release(void* block) noexcept override { std::free(block); }
    Device device() const override { return {}; }
  };
  static const std::shared_ptr<Allocator> memory = std::make_shared<Malloc>();
  return memory;
}

template <class To, class From>
void convert(To* to, const From* from, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    if constexpr (std::is_same_v<From, bfloat16>) {
      to[i] = static_cast<To>(static_cast<float>(from[i]));
    } else {
      to[i] = static_cast<To>(from[i]);
    }
  }
}

}  // namespace

Tensor::Tensor(const Shape& shape, DType dtype, std::shared_ptr<Allocator> memory) : shape_(shape), dtype_(dtype) {
  storage_ = std::make_shared<Storage>(nbytes(), std::move(memory));
}

Tensor Tensor::empty(const Shape& shape, DType dtype) {
  return Tensor(shape, dtype, long_lived_memory());
}

Tensor Tensor::zeros(const Shape& shape, DType dtype) {
  Tensor t = empty(shape, dtype);
  t.fill_zero();
  return t;
}

template <class T>
Tensor Tensor::from(const Shape& shape, std::span<const T> values) {
  WEFT_CHECK(shape.numel() == static_cast<std::int64_t>(values.size()), "{} values for a tensor {}", values.size(),
             shape.str());
  Tensor t = empty(shape, dtype_of<T>);
  if (!values.empty()) std::memcpy(t.raw(), values.data(), t.nbytes());
  return t;
}
template Tensor Tensor::from(const Shape&, std::span<const double>);
template Tensor Tensor::from(const Shape&, std::span<const float>);
template Tensor Tensor::from(const Shape&, std::span<const std::int32_t>);
template Tensor Tensor::from(const Shape&, std::span<const std::int64_t>);

Device Tensor::device() const {
  WEFT_CHECK(defined(), "device of an undefined tensor");
  return storage_->memory->device();
}

std::size_t Tensor::storage_bytes() const {
  return storage_ == nullptr ? 0 : storage_->bytes;
}

void Tensor::drop_memory() const {
  if (storage_ != nullptr) storage_->drop();
}

void Tensor::restore_memory() const {
  if (storage_ != nullptr && storage_->block == nullptr) storage_->block = storage_->memory->allocate(storage_->bytes);
}

void* Tensor::raw() const {
  WEFT_CHECK(defined() && storage_->block != nullptr, "data of a tensor that {}",
             defined() ? "gave its memory back" : "is undefined");
  return static_cast<std::byte*>(storage_->block) + offset_bytes_;
}

Tensor Tensor::reshape(const Shape& shape) const {
  WEFT_CHECK(shape.numel() == numel(), "reshape {} to {}", shape_.str(), shape.str());
  Tensor t = *this;
  t.shape_ = shape;
  return t;
}

Tensor Tensor::rows(std::int64_t begin, std::int64_t end) const {
  WEFT_CHECK(rank() >= 1 && 0 <= begin && begin <= end && end <= dim(0), "rows [{}, {}) of {}", begin, end,
             shape_.str());
  Tensor t = *this;
  const std::int64_t row = dim(0) == 0 ? 0 : numel() / dim(0);
  t.shape_.set(0, end - begin);
  t.offset_bytes_ += static_cast<std::size_t>(begin * row) * size_of(dtype_);
  return t;
}

void Tensor::fill_zero() const {
  WEFT_CHECK(device().is_cpu(), "fill_zero is for host tensors");
  std::memset(raw(), 0, nbytes());
}

void Tensor::copy_from(const Tensor& source) const {
  WEFT_CHECK(numel() == source.numel(), "copy {} into {}", source.shape().str(), shape_.str());
  WEFT_CHECK(device().is_cpu() && source.device().is_cpu(), "copy_from is for host tensors");
  if (dtype_ == source.dtype_) {
    std::memcpy(raw(), source.raw(), nbytes());
    return;
  }
  dispatch_floating(dtype_, "copy", [&]<class To>() {
    dispatch_floating(source.dtype_, "copy", [&]<class From>() { convert(data<To>(), source.data<From>(), numel()); });
  });
}

Tensor Tensor::clone() const {
  if (!defined()) return {};
  Tensor copy = empty(shape_, dtype_);
  copy.copy_from(*this);
  return copy;
}

}  // namespace weft
