// CUDA launchers of head_linear.h: products batched over heads, on rows that are a token apart. Where both gradients
// are wanted, one kernel makes them if it can.
#include "autograd/cuda/matmul.h"
#include "autograd/ops/head_linear/head_linear.h"
#include "autograd/ops/head_linear/head_linear_gradients.h"

namespace weft {

std::size_t head_linear_forward_cuda_workspace(const HeadLinearForward&) {
  return kMatmulWorkspace;
}

void head_linear_forward_cuda(const HeadLinearForward& args, const Launch& launch) {
  matmul({.op_b = Op::transpose,
          .m = args.T,
          .n = args.O,
          .k = args.I,
          .operands = args.dtype,
          .output = args.dtype,
          .a = args.x,
          .b = args.weight,
          .c = args.y,
          .lda = args.H * args.I,
          .ldb = args.I,
          .ldc = args.H * args.O,
          .batch = args.H,
          .stride_a = args.I,
          .stride_b = args.O * args.I,
          .stride_c = args.O},
         launch);
}

std::size_t head_linear_backward_cuda_workspace(const HeadLinearBackward& args) {
  return head_linear_gradients_fit(args) ? head_linear_gradients_workspace(args) : kMatmulWorkspace;
}

void head_linear_backward_cuda(const HeadLinearBackward& args, const Launch& launch) {
  if (head_linear_gradients_fit(args)) return head_linear_gradients(args, launch);
  if (args.dx != nullptr) {
    matmul({.m = args.T,
            .n = args.I,
            .k = args.O,
            .operands = args.dtype,
            .output = args.dtype,
            .a = args.dy,
            .b = args.weight,
            .c = args.dx,
            .lda = args.H * args.O,
            .ldb = args.I,
            .ldc = args.H * args.I,
            .beta = beta_of(args.write_dx),
            .batch = args.H,
            .stride_a = args.O,
            .stride_b = args.O * args.I,
            .stride_c = args.I},
           launch);
  }
  if (args.dweight != nullptr) {
    matmul({.op_a = Op::transpose,
            .m = args.O,
            .n = args.I,
            .k = args.T,
            .operands = args.dtype,
            .output = DType::f32,
            .a = args.dy,
            .b = args.x,
            .c = args.dweight,
            .lda = args.H * args.O,
            .ldb = args.H * args.I,
            .ldc = args.I,
            .beta = beta_of(args.write_dweight),
            .batch = args.H,
            .stride_a = args.O,
            .stride_b = args.I,
            .stride_c = args.O * args.I},
           launch);
  }
}

}  // namespace weft
