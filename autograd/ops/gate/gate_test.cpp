#include "autograd/ops/gate/gate.h"

#include "tests/support/op_check.h"

namespace weft {
namespace {

using testing::normal;
using testing::OpCase;

using Function = Var (*)(Tape&, const Var&, const Var&);

void check_gates(testing::OpCheck check_op, const Shape& x, const Shape& g) {
  for (const Function f : {&sigmoid_gate, &silu_gate, &gelu_gate, &linear_gate}) {
    for (const testing::InputRole role : {testing::InputRole::activation, testing::InputRole::vector}) {
      check_op(
          OpCase{.name = fmt::format("x {} g {}", x.str(), g.str()),
                 .inputs = {normal(x, 1), {normal(g, 2, 2.0), role}},
                 .function = [f](Tape& tape, std::span<const Var> in) { return std::vector{f(tape, in[0], in[1])}; }});
    }
  }
}

OP_TEST(Gate, ElementWise) {
  for (const Shape& x :
       {Shape{0, 4}, Shape{1}, Shape{2, 3}, Shape{15, 64}, Shape{17, 257}, Shape{65, 3, 5}, Shape{1000, 17}}) {
    check_gates(check_op, x, x);
  }
}

OP_TEST(Gate, OneGateARow) {
  for (const std::int64_t T : {0, 1, 2, 15, 17, 63, 65, 129, 1000}) check_gates(check_op, {T, 2, 3}, {T, 2});
  for (const std::int64_t D : {1, 3, 64, 128, 257}) check_gates(check_op, {5, 3, D}, {5, 3});
  check_gates(check_op, {7, 600}, {7});
}

// x may be its own gate: both gradients reach one leaf.
TEST(Gate, SelfGate) {
  const Tensor x = normal({33, 5}, 1), dy = normal({33, 5}, 2);
  Tape tape(heap_allocator(Hygiene::hostile));
  const Var a = tape.leaf(x), g = tape.leaf(x), both = tape.leaf(x);
  const std::array<Var, 2> y{silu_gate(tape, a, g), silu_gate(tape, both, both)};
  tape.backward(y, std::array<Tensor, 2>{dy, dy});
  for (int i = 0; i < 165; ++i) {
    EXPECT_EQ(tape.gradient(both).data<double>()[i],
              tape.gradient(a).data<double>()[i] + tape.gradient(g).data<double>()[i]);
  }
}

TEST(Gate, RefusesForeignShapes) {
  Tape tape(heap_allocator());
  const Var x = tape.leaf(normal({4, 3, 8}, 1));
  EXPECT_THROW(sigmoid_gate(tape, x, tape.leaf(normal({4, 8}, 1))), Error);
  EXPECT_THROW(sigmoid_gate(tape, x, tape.leaf(normal({4}, 1))), Error);
  EXPECT_THROW(silu_gate(tape, x, tape.leaf(testing::cast(x.value, DType::f32))), Error);
}

}  // namespace
}  // namespace weft
