#include "autograd/ops/repeat_heads/repeat_heads.h"

#include "tests/support/op_check.h"

namespace weft {
namespace {

using testing::normal;
using testing::OpCase;

OP_TEST(RepeatHeads, GradientsAndPrecision) {
  struct Case {
    std::int64_t T, G, H, D;
  };
  for (const auto& [T, G, H, D] :
       {Case{0, 1, 2, 3}, Case{1, 1, 1, 1}, Case{17, 2, 6, 5}, Case{130, 1, 4, 33}, Case{65, 2, 8, 64}}) {
    check_op(OpCase{
        .name = fmt::format("T {} G {} H {} D {}", T, G, H, D),
        .inputs = {normal({T, G, D}, 1)},
        .function = [H](Tape& tape, std::span<const Var> in) { return std::vector{repeat_heads(tape, in[0], H)}; }});
  }
}

TEST(RepeatHeads, HeadsOfAGroupAreAdjacent) {
  Tape tape(heap_allocator(), Tape::Mode::inference);
  const Var x = Tape::constant(Tensor::from({1, 2, 1}, std::vector<double>{3.0, 5.0}));
  const Tensor y = repeat_heads(tape, x, 4).value;
  const double expected[] = {3.0, 3.0, 5.0, 5.0};
  for (int h = 0; h < 4; ++h) EXPECT_EQ(y.data<double>()[h], expected[h]);
  EXPECT_THROW(repeat_heads(tape, x, 3), Error);
}

}  // namespace
}  // namespace weft
