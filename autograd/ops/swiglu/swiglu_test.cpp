#include "autograd/ops/swiglu/swiglu.h"

#include <cmath>

#include "tests/support/op_check.h"

namespace weft {
namespace {

using testing::normal;
using testing::OpCase;

OP_TEST(SwiGlu, GradientsAndPrecision) {
  for (const Shape& x : {Shape{0, 3}, Shape{1, 1}, Shape{17, 3}, Shape{63, 257}, Shape{2, 5, 64}}) {
    check_op(OpCase{
        .name = x.str(), .inputs = {normal(x, 1), normal(x, 2)}, .function = [](Tape& tape, std::span<const Var> in) {
          return std::vector{swiglu(tape, in[0], in[1])};
        }});
  }
}

TEST(SwiGlu, TheFirstArgumentIsTheGate) {
  Tape tape(heap_allocator());
  const Var gate = Tape::constant(Tensor::from({2}, std::vector<double>{1.0, -2.0}));
  const Var up = Tape::constant(Tensor::from({2}, std::vector<double>{3.0, 5.0}));
  const Tensor y = swiglu(tape, gate, up).value;
  EXPECT_DOUBLE_EQ(y.data<double>()[0], 3.0 * 1.0 / (1.0 + std::exp(-1.0)));
  EXPECT_DOUBLE_EQ(y.data<double>()[1], 5.0 * -2.0 / (1.0 + std::exp(2.0)));
}

TEST(SwiGlu, RefusesUnequalShapes) {
  Tape tape(heap_allocator());
  EXPECT_THROW(swiglu(tape, tape.leaf(normal({4}, 1)), tape.leaf(normal({4, 3}, 1))), Error);
}

}  // namespace
}  // namespace weft
