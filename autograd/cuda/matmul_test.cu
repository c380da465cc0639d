#include <gtest/gtest.h>

#include "autograd/cuda/matmul.h"
#include "autograd/tape.h"
#include "autograd/transfer.h"
#include "tests/support/compare.h"
#include "tests/support/gpu.h"
#include "tests/support/random.h"

namespace weft {
namespace {

using testing::cast;
using testing::normal;

// A product inside larger matrices: rows are `pad` elements longer than they need, and start `shift` elements late.
struct Case {
  Op op_a, op_b;
  std::int64_t m, n, k, batch = 1, pad = 0, shift = 0;
  float alpha = 1.0f, beta = 0.0f;
  bool bias = false, other_addend = false;
};

struct Operand {
  std::int64_t rows, columns, ld, stride;
  Tensor host;  // fp64, rounded to the type of the product

  Operand(const Case& c, std::int64_t r, std::int64_t n, std::uint64_t seed, DType dtype)
      : rows(r), columns(n), ld(n + c.pad), stride(r * (n + c.pad) + c.pad) {
    host = cast(cast(normal({c.batch * stride + c.shift}, seed), dtype), DType::f64);
  }
  double at(const Case& c, std::int64_t b, std::int64_t i, std::int64_t j) const {
    return host.data<double>()[c.shift + b * stride + i * ld + j];
  }
};

void check(const Case& c, DType operands, DType output) {
  SCOPED_TRACE(fmt::format("{}{} [{}, {}, {}] x{} pad {} shift {} beta {} bias {} {} -> {}",
                           c.op_a == Op::none ? "n" : "t", c.op_b == Op::none ? "n" : "t", c.m, c.n, c.k, c.batch,
                           c.pad, c.shift, c.beta, c.bias, name_of(operands), name_of(output)));
  const bool turn_a = c.op_a == Op::transpose, turn_b = c.op_b == Op::transpose;
  const Operand a(c, turn_a ? c.k : c.m, turn_a ? c.m : c.k, 1, operands);
  const Operand b(c, turn_b ? c.n : c.k, turn_b ? c.k : c.n, 2, operands);
  const Operand before(c, c.m, c.n, 3, output);
  const Tensor bias = cast(cast(normal({c.n}, 4), output), DType::f64);
  Tensor expected = cast(before.host, DType::f64);
  for (std::int64_t e = 0; e < c.batch; ++e) {
    for (std::int64_t i = 0; i < c.m; ++i) {
      for (std::int64_t j = 0; j < c.n; ++j) {
        double sum = 0.0;
        for (std::int64_t l = 0; l < c.k; ++l) {
          sum += (turn_a ? a.at(c, e, l, i) : a.at(c, e, i, l)) * (turn_b ? b.at(c, e, j, l) : b.at(c, e, l, j));
        }
        sum = static_cast<double>(c.alpha) * sum + static_cast<double>(c.beta) * before.at(c, e, i, j);
        if (c.bias) sum += bias.data<double>()[j];
        expected.data<double>()[c.shift + e * before.stride + i * before.ld + j] = sum;
      }
    }
  }
  const auto run = [&] {
    Tape tape(testing::gpu_memory(), Tape::Mode::inference, testing::gpu_stream());
    const auto on_gpu = [&](const Tensor& t, DType dtype) { return tape.here(cast(t, dtype)); };
    const auto shifted = [&](const Tensor& t) {
      return static_cast<std::byte*>(t.raw()) + static_cast<std::size_t>(c.shift) * size_of(t.dtype());
    };
    const Tensor ga = on_gpu(a.host, operands), gb = on_gpu(b.host, operands), gc = on_gpu(before.host, output);
    const Tensor addend = on_gpu(before.host, output), gbias = on_gpu(bias, output);
    matmul({.op_a = c.op_a,
            .op_b = c.op_b,
            .m = c.m,
            .n = c.n,
            .k = c.k,
            .operands = operands,
            .output = output,
            .a = shifted(ga),
            .b = shifted(gb),
            .c = shifted(gc),
            .lda = a.ld,
            .ldb = b.ld,
            .ldc = before.ld,
            .alpha = c.alpha,
            .beta = c.beta,
            .addend = c.other_addend ? shifted(addend) : nullptr,
            .bias = c.bias ? gbias.raw() : nullptr,
            .batch = c.batch,
            .stride_a = a.stride,
            .stride_b = b.stride,
            .stride_c = before.stride},
           tape.launch(kMatmulWorkspace));
    return cast(to_host(gc, tape.stream()), output);
  };
  const Tensor once = run();
  const auto& tolerance = output == DType::f32 ? testing::kFp32 : testing::kBf16;
  EXPECT_TRUE(testing::close(once, expected, tolerance.forward, tolerance.max));
  EXPECT_TRUE(testing::bitwise_equal(run(), once));
}

TEST(MatmulGpu, AgainstPlainLoops) {
  WEFT_NEEDS_GPU();
  const std::pair<DType, DType> types[] = {
      {DType::f32, DType::f32}, {DType::bf16, DType::bf16}, {DType::bf16, DType::f32}};
  const Case cases[] = {
      {Op::none, Op::transpose, 64, 128, 96},
      {Op::none, Op::none, 64, 128, 96, 1, 8},
      {Op::transpose, Op::none, 64, 128, 512, 1, 0, 0, 1.0f, 1.0f},
      {Op::transpose, Op::transpose, 24, 40, 56, 3},
      {Op::none, Op::transpose, 17, 3, 5, 1, 0, 0, 1.0f, 0.0f, true},
      {Op::none, Op::none, 1, 1, 1},
      {Op::none, Op::none, 33, 65, 7, 2, 3, 1, -0.5f, 2.0f, false, true},
      {Op::transpose, Op::none, 5, 257, 2000, 1, 1, 3, 1.0f, 1.0f},
      {Op::none, Op::transpose, 129, 31, 64, 1, 0, 0, 1.0f, 0.0f, true},
      {Op::none, Op::transpose, 128, 128, 256, 4, 0, 0, 1.5f, -2.0f, false, true},
  };
  for (const auto& [operands, output] : types) {
    for (const Case& c : cases) check(c, operands, output);
  }
}

TEST(MatmulGpu, EmptyDimensions) {
  WEFT_NEEDS_GPU();
  for (const float beta : {0.0f, 1.0f}) {
    check({Op::none, Op::none, 5, 7, 0, 2, 3, 1, 1.0f, beta}, DType::bf16, DType::f32);
    check({Op::none, Op::none, 0, 7, 4, 1, 0, 0, 1.0f, beta}, DType::bf16, DType::bf16);
  }
}

}  // namespace
}  // namespace weft
