#include "autograd/cuda/matmul.h"
#include "modules/mixers/mla/head_products.h"

namespace weft {

std::size_t head_products_cuda_workspace(const HeadProducts&) {
  return kMatmulWorkspace;
}

void head_products_cuda(const HeadProducts& p, const Launch& launch) {
  matmul({.op_b = p.op,
          .m = p.T,
          .n = p.O,
          .k = p.I,
          .operands = p.dtype,
          .output = p.dtype,
          .a = p.x,
          .b = p.weight,
          .c = p.y,
          .lda = p.H * p.I,
          .ldb = p.op == Op::none ? p.O : p.I,
          .ldc = p.H * p.O,
          .batch = p.H,
          .stride_a = p.I,
          .stride_b = p.weight_stride,
          .stride_c = p.O},
         launch);
}

}  // namespace weft
