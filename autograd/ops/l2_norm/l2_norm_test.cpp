#include "autograd/ops/l2_norm/l2_norm.h"

#include <cmath>

#include "tests/support/op_check.h"

namespace weft {
namespace {

using testing::normal;
using testing::OpCase;

OP_TEST(L2Norm, GradientsAndPrecision) {
  for (const Shape& x : {Shape{0, 8}, Shape{1, 2}, Shape{2, 257}, Shape{15, 3}, Shape{17, 64}, Shape{63, 33},
                         Shape{65, 3, 16}, Shape{129, 5}, Shape{1000, 32}, Shape{33, 4, 128}, Shape{5, 2048}}) {
    check_op(OpCase{.name = x.str(), .inputs = {normal(x, 1)}, .function = [](Tape& tape, std::span<const Var> in) {
                      return std::vector{l2_norm(tape, in[0])};
                    }});
  }
}

// Where eps matters: the derivative is that of the formula with eps in it.
OP_TEST(L2Norm, LargeEpsilon) {
  check_op(
      OpCase{.name = "eps 0.5", .inputs = {normal({9, 4}, 1)}, .function = [](Tape& tape, std::span<const Var> in) {
               return std::vector{l2_norm(tape, in[0], 0.5)};
             }});
}

TEST(L2Norm, ZeroRowsStayZero) {
  Tape tape(heap_allocator(Hygiene::hostile));
  const Var x = tape.leaf(Tensor::zeros({2, 4}, DType::f32));
  const Var y = l2_norm(tape, x);
  for (const float v : y.value.span<float>()) EXPECT_EQ(v, 0.0f);
  const Tensor dy = testing::cast(normal({2, 4}, 1), DType::f32);
  tape.backward(y, dy);
  const Tensor dx = tape.gradient(x);
  for (int i = 0; i < 8; ++i) EXPECT_FLOAT_EQ(dx.data<float>()[i], dy.data<float>()[i] * 1e3f);
}

TEST(L2Norm, RefusesEmptyRows) {
  Tape tape(heap_allocator());
  EXPECT_THROW(l2_norm(tape, tape.leaf(normal({4, 0}, 1))), Error);
}

}  // namespace
}  // namespace weft
