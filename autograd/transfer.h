// Filling and copying tensors of any device, in the order of a stream.
#pragma once

#include "autograd/tensor.h"

namespace weft {

void fill_zero(const Tensor& tensor, const Stream& stream);
// Floating types.
void fill(const Tensor& tensor, double value, const Stream& stream);
// Same type and number of elements; either side may be host or device memory. Copies that touch pageable host memory
// may wait for the stream; those between device blocks never do.
void copy(const Tensor& to, const Tensor& from, const Stream& stream);
// Waits until all work of the stream is done. Faults of kernels surface here, as an Error (internal).
void synchronize(const Stream& stream);

// A copy in other memory.
Tensor to_memory(const Tensor& tensor, const std::shared_ptr<Allocator>& memory, const Stream& stream);
// A host copy; waits for the stream. A host tensor is returned as it is.
Tensor to_host(const Tensor& tensor, const Stream& stream);
// The same as another floating type.
Tensor to_host(const Tensor& tensor, DType dtype, const Stream& stream);

// to = from, rounded to the type of `to`, on one device. On GPUs f32 becomes bf16.
struct Conversion {
  DType to_dtype, from_dtype;
  std::int64_t N;
  void* to;          // [N]
  const void* from;  // [N]
};
void convert(const Tensor& to, const Tensor& from, const Stream& stream);

// to += from, element by element; `from` has the type of `to` or is bf16 beside f32.
struct GradientSum {
  DType to_dtype, from_dtype;
  std::int64_t N;
  void* to;          // [N]
  const void* from;  // [N]
};
void add_into(const Tensor& to, const Tensor& from, const Stream& stream);

struct Fill {
  DType dtype;
  std::int64_t N;
  double value;
  void* y;  // [N]
};
void convert_cuda(const Conversion& args, const Launch& launch);
void fill_cuda(const Fill& args, const Launch& launch);
void gradient_sum_cuda(const GradientSum& args, const Launch& launch);

}  // namespace weft
