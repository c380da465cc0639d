// CUDA launchers of linear.h: three products, and a sum over rows for the bias.
#include "autograd/cuda/map_cuda.cuh"
#include "autograd/cuda/matmul.h"
#include "autograd/cuda/sum_rows.h"
#include "autograd/ops/linear/few_rows.h"

namespace weft {
namespace {

struct Round {
  __device__ void operator()(float x, float& y) const { y = x; }
};

// The product's epilogue takes the bias in the type of y.
std::size_t rounded_bias_bytes(const LinearForward& args) {
  return args.bias == nullptr || args.dtype == DType::f32 || !args.rounded
             ? 0
             : padded_block(static_cast<std::size_t>(args.O) * 2, Hygiene::trusting);
}

}  // namespace

std::size_t linear_forward_cuda_workspace(const LinearForward& args) {
  return kMatmulWorkspace + rounded_bias_bytes(args);
}

void linear_forward_cuda(const LinearForward& args, const Launch& launch) {
  if (few_rows_fit(args)) return linear_few_rows_cuda(args, launch);
  const void* bias = args.bias;
  if (rounded_bias_bytes(args) > 0) {
    auto* rounded = reinterpret_cast<bfloat16*>(static_cast<std::byte*>(launch.workspace) + kMatmulWorkspace);
    map_cuda(launch, args.O, map_inputs(static_cast<const float*>(bias)), map_outputs(map_output(rounded)), Round{});
    bias = rounded;
  }
  matmul({.op_b = Op::transpose,
          .m = args.R,
          .n = args.O,
          .k = args.I,
          .operands = args.dtype,
          .output = args.rounded ? args.dtype : DType::f32,
          .a = args.x,
          .b = args.weight,
          .c = args.y,
          .lda = args.I,
          .ldb = args.I,
          .ldc = args.O,
          .bias = bias},
         launch);
}

std::size_t linear_backward_cuda_workspace(const LinearBackward& args) {
  return std::max(kMatmulWorkspace, args.dbias == nullptr ? 0 : sum_rows_workspace(args.R, args.O));
}

void linear_backward_cuda(const LinearBackward& args, const Launch& launch) {
  if (args.dx != nullptr) {
    matmul({.m = args.R,
            .n = args.I,
            .k = args.O,
            .operands = args.dtype,
            .output = args.dtype,
            .a = args.dy,
            .b = args.weight,
            .c = args.dx,
            .lda = args.O,
            .ldb = args.I,
            .ldc = args.I,
            .beta = beta_of(args.write_dx)},
           launch);
  }
  if (args.dweight != nullptr) {
    matmul({.op_a = Op::transpose,
            .m = args.O,
            .n = args.I,
            .k = args.R,
            .operands = args.dtype,
            .output = DType::f32,
            .a = args.dy,
            .b = args.x,
            .c = args.dweight,
            .lda = args.O,
            .ldb = args.I,
            .ldc = args.I,
            .beta = beta_of(args.write_dweight)},
           launch);
  }
  if (args.dbias != nullptr) {
    sum_rows_cuda(args.dtype, args.dy, args.R, args.O, static_cast<float*>(args.dbias), args.write_dbias, launch);
  }
}

}  // namespace weft
