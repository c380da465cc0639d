#include "autograd/cuda/map_cuda.cuh"
#include "autograd/transfer.h"

namespace weft {
namespace {

struct Identity {
  __device__ void operator()(float x, float& y) const { y = x; }
};

struct Constant {
  float value;
  __device__ void operator()(float& y) const { y = value; }
};

}  // namespace

void convert_cuda(const Conversion& args, const Launch& launch) {
  WEFT_CHECK(args.from_dtype == DType::f32 && args.to_dtype == DType::bf16, "{} rounded to {} on CUDA",
             name_of(args.from_dtype), name_of(args.to_dtype));
  map_cuda(launch, args.N, map_inputs(static_cast<const float*>(args.from)),
           map_outputs(map_output(static_cast<bfloat16*>(args.to))), Identity{});
}

void fill_cuda(const Fill& args, const Launch& launch) {
  dispatch_cuda(args.dtype, "fill", [&]<class T>() {
    map_cuda(launch, args.N, cuda::std::tuple<>{}, map_outputs(map_output(static_cast<T*>(args.y))),
             Constant{static_cast<float>(args.value)});
  });
}

void gradient_sum_cuda(const GradientSum& args, const Launch& launch) {
  dispatch_cuda(args.to_dtype, "gradient sum", [&]<class To>() {
    dispatch_cuda(args.from_dtype, "gradient sum", [&]<class From>() {
      map_cuda(launch, args.N, map_inputs(static_cast<const From*>(args.from)),
               map_outputs(map_output(static_cast<To*>(args.to), Write::accumulate)), Identity{});
    });
  });
}

}  // namespace weft
