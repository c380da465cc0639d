// Element-wise kernels over arrays of one length: any number of inputs and outputs of mixed types, arithmetic in fp32,
// each output overwritten, accumulated into, or not wanted. The CUDA counterpart of autograd/map_cpu.h.
//
//   map_cuda(launch, n, map_inputs(x, g), map_outputs(map_output(y, write)), Function{})
// calls Function's `__device__ void operator()(float x, float g, float& y) const` for each element.
#pragma once

#include <cuda/std/tuple>
#include <utility>

#include "autograd/cuda/cuda_check.cuh"
#include "autograd/cuda/pack.cuh"
#include "autograd/dispatch.h"

namespace weft {

// Calls f.template operator()<T>() with T = float or bfloat16: the element types of CUDA tensors.
template <class F>
decltype(auto) dispatch_cuda(DType dtype, const char* op, F&& f) {
  switch (dtype) {
    case DType::f32:
      return f.template operator()<float>();
    case DType::bf16:
      return f.template operator()<bfloat16>();
    default:
      fail(ExitCode::internal, "{}: expected f32 or bf16 on CUDA, got {}", op, name_of(dtype));
  }
}

template <class T>
struct CudaMapOutput {
  T* data;
  Write write;
};
template <class T>
CudaMapOutput<T> map_output(T* data, Write write = Write::overwrite) {
  return {data, write};
}
template <class... T>
cuda::std::tuple<const T*...> map_inputs(const T*... data) {
  return {data...};
}
template <class... T>
cuda::std::tuple<CudaMapOutput<T>...> map_outputs(const CudaMapOutput<T>&... outputs) {
  return {outputs...};
}

namespace detail {

inline constexpr int kMapThreads = 256;

template <int kN, class F, class Inputs, class Outputs, std::size_t... In, std::size_t... Out>
__device__ void map_pack(std::int64_t at, const Inputs& inputs, const Outputs& outputs, const F& f,
                         std::index_sequence<In...>, std::index_sequence<Out...>) {
  float in[sizeof...(In) + 1][kN];  // one more, so that none is legal
  float out[sizeof...(Out)][kN];
  (load_pack(cuda::std::get<In>(inputs) + at, in[In]), ...);
#pragma unroll
  for (int i = 0; i < kN; ++i) f(in[In][i]..., out[Out][i]...);
  const auto put = [at](const auto& output, const float(&values)[kN]) {
    if (output.data != nullptr) store_pack(output.data + at, values, output.write);
  };
  (put(cuda::std::get<Out>(outputs), out[Out]), ...);
}

template <int kN, class F, class Inputs, class Outputs>
__global__ void __launch_bounds__(kMapThreads) map_kernel(std::int64_t n, Inputs inputs, Outputs outputs, F f) {
  const std::int64_t at = (static_cast<std::int64_t>(blockIdx.x) * kMapThreads + threadIdx.x) * kN;
  constexpr auto in = std::make_index_sequence<cuda::std::tuple_size_v<Inputs>>{};
  constexpr auto out = std::make_index_sequence<cuda::std::tuple_size_v<Outputs>>{};
  if (at + kN <= n) {
    map_pack<kN>(at, inputs, outputs, f, in, out);
  } else {
    for (std::int64_t i = at; i < n; ++i) map_pack<1>(i, inputs, outputs, f, in, out);
  }
}

}  // namespace detail

template <class F, class... In, class... Out>
void map_cuda(const Launch& launch, std::int64_t n, const cuda::std::tuple<const In*...>& inputs,
              const cuda::std::tuple<CudaMapOutput<Out>...>& outputs, const F& f) {
  if (n == 0) return;
  constexpr int kN = 8;
  const bool aligned =
      cuda::std::apply([](const auto*... data) { return (packs_fit<kN>(data, 0) && ...); }, inputs) &&
      cuda::std::apply([](const auto&... output) { return (packs_fit<kN>(output.data, 0) && ...); }, outputs);
  const auto run = [&]<int kWidth>() {
    constexpr std::int64_t kPerBlock = detail::kMapThreads * kWidth;
    const auto blocks = static_cast<unsigned>((n + kPerBlock - 1) / kPerBlock);
    detail::map_kernel<kWidth><<<blocks, detail::kMapThreads, 0, cuda_stream(launch.stream)>>>(n, inputs, outputs, f);
  };
  if (aligned) {
    run.template operator()<kN>();
  } else {
    run.template operator()<1>();
  }
  WEFT_CHECK_LAUNCH();
}

}  // namespace weft
