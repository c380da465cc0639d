#include "autograd/ops/elementwise/elementwise.h"

#include "tests/support/op_check.h"

namespace weft {
namespace {

using testing::normal;
using testing::OpCase;

const std::vector<Shape> kShapes{{0, 3},  {1, 1},   {2, 3},    {15, 64}, {17, 257},
                                 {63, 1}, {65, 33}, {5, 3, 7}, {129, 2}, {1000, 17}};

OP_TEST(Elementwise, SumProductScale) {
  using Function = Var (*)(Tape&, std::span<const Var>);
  constexpr Function kFunctions[] = {[](Tape& tape, std::span<const Var> in) { return add(tape, in[0], in[1]); },
                                     [](Tape& tape, std::span<const Var> in) { return mul(tape, in[0], in[1]); },
                                     [](Tape& tape, std::span<const Var> in) { return scale(tape, in[0], -0.3); }};
  for (const Shape& x : kShapes) {
    for (const Function f : kFunctions) {
      check_op(OpCase{.name = x.str(),
                      .inputs = {normal(x, 1), normal(x, 2)},
                      .function = [f](Tape& tape, std::span<const Var> in) { return std::vector{f(tape, in)}; }});
    }
  }
}

OP_TEST(Elementwise, Rows) {
  for (const Shape& x : kShapes) {
    for (const auto f : {&add_row, &mul_row}) {
      check_op(
          OpCase{.name = x.str(),
                 .inputs = {normal(x, 1), testing::vector_input(normal({x.back()}, 2))},
                 .function = [f](Tape& tape, std::span<const Var> in) { return std::vector{f(tape, in[0], in[1])}; }});
    }
  }
}

// One value as both arguments: both gradients reach it.
TEST(Elementwise, OneValueTwice) {
  const Tensor x = normal({5}, 1), dy = normal({5}, 2);
  using Function = Var (*)(Tape&, const Var&, const Var&);
  const std::pair<Function, bool> cases[] = {{&add, true}, {&add_row, true}, {&mul, false}, {&mul_row, false}};
  for (const auto& [f, is_sum] : cases) {
    Tape tape(heap_allocator(Hygiene::hostile));
    const Var leaf = tape.leaf(x);
    tape.backward(f(tape, leaf, leaf), dy);
    const Tensor dx = tape.gradient(leaf);
    for (int i = 0; i < 5; ++i) {
      const double slope = is_sum ? 1.0 : x.data<double>()[i];
      EXPECT_DOUBLE_EQ(dx.data<double>()[i], 2.0 * slope * dy.data<double>()[i]);
    }
    EXPECT_DOUBLE_EQ(dy.data<double>()[0], normal({5}, 2).data<double>()[0]) << "the seed was written to";
  }
}

TEST(Elementwise, RefusesForeignShapes) {
  Tape tape(heap_allocator());
  const Var x = tape.leaf(normal({4, 3}, 1));
  EXPECT_THROW(add(tape, x, tape.leaf(normal({3, 4}, 1))), Error);
  EXPECT_THROW(mul(tape, x, tape.leaf(testing::cast(x.value, DType::f32))), Error);
  EXPECT_THROW(add_row(tape, x, tape.leaf(normal({4}, 1))), Error);
  EXPECT_THROW(mul_row(tape, x, tape.leaf(normal({1, 3}, 1))), Error);
}

}  // namespace
}  // namespace weft
