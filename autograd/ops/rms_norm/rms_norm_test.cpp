#include "autograd/ops/rms_norm/rms_norm.h"

#include "tests/support/op_check.h"

namespace weft {
namespace {

using testing::normal;
using testing::OpCase;
using testing::vector_input;

OP_TEST(RmsNorm, PlainAndPerHead) {
  for (const Shape& x :
       {Shape{1, 2}, Shape{3, 7}, Shape{65, 33}, Shape{5, 3, 16}, Shape{0, 8}, Shape{700, 64}, Shape{150, 5, 128},
        Shape{9, 256}, Shape{9, 1000}, Shape{40, 2048}, Shape{6, 2056}, Shape{5, 4096}}) {
    for (const std::int64_t H : {std::int64_t{1}, x.rank() == 3 ? x[1] : std::int64_t{1}}) {
      check_op(OpCase{
          .name = fmt::format("x {} H {}", x.str(), H),
          .inputs = {normal(x, 1), vector_input(normal({H, x.back()}, 2))},
          .function = [](Tape& tape, std::span<const Var> in) { return std::vector{rms_norm(tape, in[0], in[1])}; }});
    }
  }
}

OP_TEST(RmsNorm, WithResidual) {
  for (const Shape& x : {Shape{1, 2}, Shape{17, 33}, Shape{600, 64}, Shape{40, 2048}}) {
    check_op(OpCase{.name = x.str(),
                    .inputs = {normal(x, 1), normal(x, 2), vector_input(normal({x.back()}, 3))},
                    .function = [](Tape& tape, std::span<const Var> in) {
                      const auto [sum, y] = add_rms_norm(tape, in[0], in[1], in[2]);
                      return std::vector{sum, y};
                    }});
  }
}

TEST(RmsNorm, RefusesAForeignWeight) {
  Tape tape(heap_allocator());
  const Var x = tape.leaf(normal({4, 8}, 1));
  EXPECT_THROW(rms_norm(tape, x, tape.leaf(normal({7}, 1))), Error);
  EXPECT_THROW(rms_norm(tape, x, tape.leaf(normal({3, 8}, 1))), Error);
}

}  // namespace
}  // namespace weft
