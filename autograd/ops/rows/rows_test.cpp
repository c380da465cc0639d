#include "autograd/ops/rows/rows.h"

#include "tests/support/op_check.h"

namespace weft {
namespace {

using testing::normal;

RowMapPtr map_of(const std::vector<std::int32_t>& index, std::int64_t rows) {
  return std::make_shared<const RowMap>(index, rows);
}

OP_TEST(TakeRows, PassesTheOperationCheck) {
  const auto two = [](const RowMapPtr& map) {
    return [map](Tape& tape, std::span<const Var> x) { return std::vector{take_rows(tape, {x[0], x[1]}, map)}; };
  };
  for (const Shape& tail : {Shape{1}, Shape{3, 2}, Shape{300}, Shape{8, 64}}) {
    Shape a{4}, b{2};
    for (const std::int64_t n : tail) a.push_back(n), b.push_back(n);
    // In order, interleaved with repetitions and omissions, nothing at all.
    for (const std::vector<std::int32_t>& index :
         {std::vector<std::int32_t>{0, 1, 2, 3, 4, 5}, {4, 5, 3, 0, 4, 5, 0}, {}}) {
      check_op({.name = tail.str(), .inputs = {normal(a, 1), normal(b, 2)}, .function = two(map_of(index, 6))});
    }
  }
  check_op({.name = "one empty source",
            .inputs = {normal({0, 3}, 1), normal({2, 3}, 2)},
            .function = two(map_of({1, 0, 1}, 2))});
}

TEST(TakeRows, TakesTheRowsItIsTold) {
  Tape tape(heap_allocator(Hygiene::hostile));
  const Var a = tape.leaf(normal({2, 3}, 1)), b = tape.leaf(normal({1, 3}, 2)), c = tape.leaf(normal({2, 3}, 3));
  const Tensor y = take_rows(tape, {a, b, c}, map_of({4, 2, 0, 2}, 5)).value;
  EXPECT_TRUE(testing::bitwise_equal(y.rows(0, 1), c.value.rows(1, 2)));
  EXPECT_TRUE(testing::bitwise_equal(y.rows(1, 2), b.value));
  EXPECT_TRUE(testing::bitwise_equal(y.rows(2, 3), a.value.rows(0, 1)));
  EXPECT_TRUE(testing::bitwise_equal(y.rows(3, 4), b.value));
}

TEST(TakeRows, RefusesRowsThatAreNotThere) {
  EXPECT_THROW(map_of({3}, 3), Error);
  EXPECT_THROW(map_of({-1}, 3), Error);
  Tape tape(heap_allocator());
  const Var a = tape.leaf(normal({2, 3}, 1));
  EXPECT_THROW(take_rows(tape, {a}, map_of({0}, 3)), Error);
  EXPECT_THROW(take_rows(tape, {a, tape.leaf(normal({1, 2}, 1))}, map_of({0}, 3)), Error);
  EXPECT_THROW(take_rows(tape, {a, a, a, a, a}, map_of({0}, 10)), Error);
}

}  // namespace
}  // namespace weft
