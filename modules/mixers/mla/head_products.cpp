#include "modules/mixers/mla/head_products.h"

#include "autograd/parallel_for.h"

namespace weft {
namespace {

template <class T>
void head_products_cpu(const HeadProducts& p) {
  const std::int64_t ld = p.op == Op::none ? p.O : p.I;
  parallel_for(p.H, Schedule::fixed, [&](std::int64_t h) {
    gemm(Op::none, p.op, p.T, p.O, p.I, T(1), static_cast<const T*>(p.x) + h * p.I, p.H * p.I,
         static_cast<const T*>(p.weight) + h * p.weight_stride, ld, T(0), static_cast<T*>(p.y) + h * p.O, p.H * p.O);
  });
}

constexpr Dispatch<HeadProducts> kHeadProducts{.op = "head products",
                                               .cpu =
                                                   [](const HeadProducts& args, const Launch&) {
                                                     dispatch_real(args.dtype, "head products",
                                                                   [&]<class T>() { head_products_cpu<T>(args); });
                                                   },
                                               .cuda = WEFT_ON_CUDA(head_products_cuda),
                                               .cuda_workspace = WEFT_ON_CUDA(head_products_cuda_workspace)};

}  // namespace

Tensor head_products(Tape& tape, const Tensor& x, const Tensor& weight, std::int64_t first, std::int64_t rows, Op op) {
  WEFT_CHECK(x.rank() == 3 && weight.rank() == 3 && x.dim(1) == weight.dim(0) && x.dtype() == weight.dtype(),
             "head products: x {} {}, weight {} {}", x.shape().str(), name_of(x.dtype()), weight.shape().str(),
             name_of(weight.dtype()));
  const std::int64_t H = weight.dim(0), C = weight.dim(2);
  const std::int64_t I = op == Op::none ? rows : C, O = op == Op::none ? C : rows;
  WEFT_CHECK(x.dim(2) == I && first >= 0 && rows > 0 && first + rows <= weight.dim(1),
             "head products: x {}, rows [{}, {}) of weight {}", x.shape().str(), first, first + rows,
             weight.shape().str());
  const Tensor y = tape.empty({x.dim(0), H, O}, x.dtype());
  const auto* matrix =
      static_cast<const std::byte*>(weight.raw()) + static_cast<std::size_t>(first * C) * size_of(x.dtype());
  kHeadProducts.run(tape, {.dtype = x.dtype(),
                           .T = x.dim(0),
                           .H = H,
                           .I = I,
                           .O = O,
                           .op = op,
                           .x = x.raw(),
                           .weight = matrix,
                           .weight_stride = weight.dim(1) * C,
                           .y = y.raw()});
  return y;
}

}  // namespace weft
