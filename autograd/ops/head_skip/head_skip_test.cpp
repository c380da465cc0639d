#include "autograd/ops/head_skip/head_skip.h"

#include "tests/support/op_check.h"

namespace weft {
namespace {

using testing::normal;
using testing::OpCase;

OP_TEST(HeadSkip, GradientsAndPrecision) {
  for (const Shape& x : {Shape{0, 2, 3}, Shape{1, 1, 1}, Shape{17, 3, 5}, Shape{1000, 2, 33}, Shape{70, 3, 64}}) {
    check_op(OpCase{.name = x.str(),
                    .inputs = {normal(x, 1), normal(x, 2), testing::vector_input(normal({x[1]}, 3))},
                    .function = [](Tape& tape, std::span<const Var> in) {
                      return std::vector{head_skip(tape, in[0], in[1], in[2])};
                    }});
  }
}

TEST(HeadSkip, RefusesForeignShapes) {
  Tape tape(heap_allocator());
  const Var x = tape.leaf(normal({4, 2, 3}, 1));
  EXPECT_THROW(head_skip(tape, x, x, tape.leaf(normal({3}, 1))), Error);
  EXPECT_THROW(head_skip(tape, x, tape.leaf(normal({4, 2, 2}, 1)), tape.leaf(normal({2}, 1))), Error);
}

}  // namespace
}  // namespace weft
