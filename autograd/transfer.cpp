#include "autograd/transfer.h"

#include <algorithm>
#include <cstring>

#include "autograd/dispatch.h"
#include "autograd/parallel_for.h"

#ifdef WEFT_CUDA
#include "autograd/cuda/cuda_check.cuh"
#endif

namespace weft {
namespace {

constexpr Dispatch<GradientSum> kSum{.op = "gradient sum",
                                     .cpu =
                                         [](const GradientSum& args, const Launch&) {
                                           WEFT_CHECK(args.from_dtype == args.to_dtype, "{} added to {}",
                                                      name_of(args.from_dtype), name_of(args.to_dtype));
                                           dispatch_real(args.to_dtype, "gradient sum", [&]<class T>() {
                                             T* to = static_cast<T*>(args.to);
                                             const T* from = static_cast<const T*>(args.from);
                                             parallel_blocks(args.N, 32768,
                                                             [&](std::int64_t, std::int64_t begin, std::int64_t end) {
                                                               for (std::int64_t i = begin; i < end; ++i)
                                                                 to[i] += from[i];
                                                             });
                                           });
                                         },
                                     .cuda = WEFT_ON_CUDA(gradient_sum_cuda)};

#ifdef WEFT_CUDA
constexpr Dispatch<Conversion> kConversion{.op = "conversion", .cuda = convert_cuda};
#endif

constexpr Dispatch<Fill> kFill{.op = "fill",
                               .cpu =
                                   [](const Fill& args, const Launch&) {
                                     dispatch_real(args.dtype, "fill", [&]<class T>() {
                                       std::fill_n(static_cast<T*>(args.y), args.N, static_cast<T>(args.value));
                                     });
                                   },
                               .cuda = WEFT_ON_CUDA(fill_cuda)};

[[maybe_unused]] void no_cuda(const char* what) {
  fail(ExitCode::internal, "{} on a CUDA device in a build without CUDA", what);
}

}  // namespace

void fill_zero(const Tensor& tensor, [[maybe_unused]] const Stream& stream) {
  if (tensor.device().planned()) return;
  if (tensor.device().is_cpu()) {
    std::memset(tensor.raw(), 0, tensor.nbytes());
    return;
  }
#ifdef WEFT_CUDA
  WEFT_CUDA_CALL(cudaMemsetAsync(tensor.raw(), 0, tensor.nbytes(), cuda_stream(stream)));
#else
  no_cuda("fill_zero");
#endif
}

void fill(const Tensor& tensor, double value, const Stream& stream) {
  kFill({.dtype = tensor.dtype(), .N = tensor.numel(), .value = value, .y = tensor.raw()}, {.stream = stream});
}

void copy(const Tensor& to, const Tensor& from, [[maybe_unused]] const Stream& stream) {
  WEFT_CHECK(to.dtype() == from.dtype() && to.numel() == from.numel(), "copy {} {} into {} {}", name_of(from.dtype()),
             from.shape().str(), name_of(to.dtype()), to.shape().str());
  if (to.nbytes() == 0 || to.device().planned() || from.device().planned()) return;
  if (to.device().is_cpu() && from.device().is_cpu()) {
    std::memcpy(to.raw(), from.raw(), to.nbytes());
    return;
  }
#ifdef WEFT_CUDA
  WEFT_CUDA_CALL(cudaMemcpyAsync(to.raw(), from.raw(), to.nbytes(), cudaMemcpyDefault, cuda_stream(stream)));
#else
  no_cuda("copy");
#endif
}

void synchronize(const Stream& stream) {
  if (stream.device.is_cpu() || stream.device.planned()) return;
#ifdef WEFT_CUDA
  WEFT_CUDA_CALL(cudaStreamSynchronize(cuda_stream(stream)));
#else
  no_cuda("synchronize");
#endif
}

Tensor to_memory(const Tensor& tensor, const std::shared_ptr<Allocator>& memory, const Stream& stream) {
  if (!tensor.defined()) return {};
  Tensor result(tensor.shape(), tensor.dtype(), memory);
  copy(result, tensor, stream);
  return result;
}

Tensor to_host(const Tensor& tensor, const Stream& stream) {
  if (!tensor.defined() || tensor.device().is_cpu()) return tensor;
  Tensor host = Tensor::empty(tensor.shape(), tensor.dtype());
  copy(host, tensor, stream);
  synchronize(stream);
  return host;
}

Tensor to_host(const Tensor& tensor, DType dtype, const Stream& stream) {
  const Tensor host = to_host(tensor, stream);
  if (host.dtype() == dtype) return host;
  Tensor converted = Tensor::empty(host.shape(), dtype);
  converted.copy_from(host);
  return converted;
}

void convert(const Tensor& to, const Tensor& from, [[maybe_unused]] const Stream& stream) {
  WEFT_CHECK(to.numel() == from.numel(), "{} rounded into {}", from.shape().str(), to.shape().str());
  if (to.device().planned()) return;
  if (to.device().is_cpu()) {
    to.copy_from(from);
    return;
  }
#ifdef WEFT_CUDA
  kConversion({.to_dtype = to.dtype(), .from_dtype = from.dtype(), .N = to.numel(), .to = to.raw(), .from = from.raw()},
              {.stream = stream});
#else
  no_cuda("convert");
#endif
}

void add_into(const Tensor& to, const Tensor& from, const Stream& stream) {
  WEFT_CHECK(to.numel() == from.numel(), "gradient {} for a value {}", from.shape().str(), to.shape().str());
  kSum({.to_dtype = to.dtype(), .from_dtype = from.dtype(), .N = to.numel(), .to = to.raw(), .from = from.raw()},
       {.stream = stream});
}

}  // namespace weft
