#include "autograd/ops/head_linear/head_linear.h"

#include "tests/support/op_check.h"

namespace weft {
namespace {

using testing::normal;
using testing::OpCase;

OP_TEST(HeadLinear, GradientsAndPrecision) {
  struct Case {
    std::int64_t T, H, I, O;
  };
  for (const auto& [T, H, I, O] :
       {Case{0, 2, 3, 4}, Case{1, 1, 1, 1}, Case{17, 3, 5, 2}, Case{130, 2, 16, 31}, Case{1, 2, 64, 64},
        Case{200, 3, 64, 128}, Case{64, 1, 128, 64}, Case{250, 2, 128, 128}}) {
    check_op(OpCase{
        .name = fmt::format("T {} H {} I {} O {}", T, H, I, O),
        .inputs = {normal({T, H, I}, 1), testing::weight(normal({H, O, I}, 2))},
        .function = [](Tape& tape, std::span<const Var> in) { return std::vector{head_linear(tape, in[0], in[1])}; }});
  }
}

TEST(HeadLinear, EachHeadHasItsOwnMap) {
  Tape tape(heap_allocator(), Tape::Mode::inference);
  const Tensor x = normal({7, 2, 3}, 1), w = normal({2, 4, 3}, 2);
  const Tensor y = head_linear(tape, Tape::constant(x), Tape::constant(w)).value;
  for (std::int64_t i = 0; i < y.numel(); ++i) {
    const std::int64_t row = i / 4, h = row % 2, o = i % 4;
    double sum = 0.0;
    for (std::int64_t c = 0; c < 3; ++c) sum += x.data<double>()[row * 3 + c] * w.data<double>()[(h * 4 + o) * 3 + c];
    EXPECT_NEAR(y.data<double>()[i], sum, 1e-14);
  }
}

TEST(HeadLinear, RefusesForeignShapes) {
  Tape tape(heap_allocator());
  const Var x = tape.leaf(normal({4, 2, 3}, 1));
  EXPECT_THROW(head_linear(tape, x, tape.leaf(normal({2, 4, 5}, 1))), Error);
  EXPECT_THROW(head_linear(tape, x, tape.leaf(normal({3, 4, 3}, 1))), Error);
}

}  // namespace
}  // namespace weft
