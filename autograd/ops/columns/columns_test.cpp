#include "autograd/ops/columns/columns.h"

#include "tests/support/op_check.h"

namespace weft {
namespace {

using testing::bitwise_equal;
using testing::normal;
using testing::OpCase;

Shape with_width(Shape shape, std::int64_t width) {
  shape.set(shape.rank() - 1, width);
  return shape;
}

const std::vector<Shape> kRows{{0, 1}, {1, 1}, {2, 1}, {17, 1}, {65, 1}, {3, 5, 1}, {64, 3, 1}, {2, 3, 2, 1}};

OP_TEST(Columns, Split) {
  for (const Shape& rows : kRows) {
    for (const auto& [A, B] : {std::pair{1, 1}, {3, 8}, {16, 5}, {2, 300}, {64, 128}}) {
      check_op(OpCase{.name = fmt::format("{} of {} + {}", rows.str(), A, B),
                      .inputs = {normal(with_width(rows, A + B), 1)},
                      .function = [A = A](Tape& tape, std::span<const Var> in) {
                        const auto [a, b] = split_columns(tape, in[0], A);
                        return std::vector{a, b};
                      }});
    }
  }
}

OP_TEST(Columns, Join) {
  for (const Shape& rows : kRows) {
    for (const auto& [A, B] : {std::pair{1, 1}, {3, 8}, {16, 5}, {300, 2}, {128, 64}}) {
      check_op(OpCase{.name = fmt::format("{} of {} + {}", rows.str(), A, B),
                      .inputs = {normal(with_width(rows, A), 1), normal(with_width(rows, B), 2)},
                      .function = [](Tape& tape, std::span<const Var> in) {
                        return std::vector{join_columns(tape, in[0], in[1])};
                      }});
    }
  }
}

OP_TEST(Columns, JoinWithOneHeadForAll) {
  for (const std::int64_t T : {0, 1, 2, 15, 17, 64}) {
    for (const std::int64_t H : {1, 2, 7}) {
      for (const auto& [A, B] : {std::pair{1, 1}, {3, 8}, {5, 259}, {128, 64}}) {
        check_op(OpCase{.name = fmt::format("T {} H {} of {} + {}", T, H, A, B),
                        .inputs = {normal({T, H, A}, 1), normal({T, 1, B}, 2)},
                        .function = [](Tape& tape, std::span<const Var> in) {
                          return std::vector{join_columns(tape, in[0], in[1])};
                        }});
      }
    }
  }
}

// Nothing is computed, so what was split comes back to the bit, and a shared part stands beside every head.
TEST(Columns, MovesNumbersUnchanged) {
  const Tensor x = normal({9, 4, 10}, 1);
  Tape tape(heap_allocator(Hygiene::hostile), Tape::Mode::inference);
  const auto [a, b] = split_columns(tape, Tape::constant(x), 7);
  EXPECT_EQ(a.shape(), (Shape{9, 4, 7}));
  EXPECT_EQ(b.shape(), (Shape{9, 4, 3}));
  EXPECT_TRUE(bitwise_equal(join_columns(tape, a, b).value, x));

  const Tensor one = normal({9, 1, 3}, 2);
  const auto [first, repeated] = split_columns(tape, join_columns(tape, a, Tape::constant(one)), 7);
  EXPECT_TRUE(bitwise_equal(first.value, a.value));
  for (std::int64_t i = 0; i < repeated.value.numel(); ++i) {
    EXPECT_EQ(repeated.value.data<double>()[i], one.data<double>()[i / 12 * 3 + i % 3]);
  }
}

TEST(Columns, RefusesForeignShapes) {
  Tape tape(heap_allocator());
  const Var x = tape.leaf(normal({4, 2, 6}, 1));
  EXPECT_THROW(split_columns(tape, x, 0), Error);
  EXPECT_THROW(split_columns(tape, x, 6), Error);
  EXPECT_THROW(join_columns(tape, x, tape.leaf(normal({4, 3, 6}, 2))), Error);
  EXPECT_THROW(join_columns(tape, x, tape.leaf(normal({5, 1, 6}, 2))), Error);
  EXPECT_THROW(join_columns(tape, x, tape.leaf(normal({8, 6}, 2))), Error);
  EXPECT_THROW(join_columns(tape, x, tape.leaf(testing::cast(x.value, DType::f32))), Error);
}

}  // namespace
}  // namespace weft
