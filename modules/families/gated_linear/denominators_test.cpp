#include "modules/families/gated_linear/denominators.h"

#include "autograd/ops/elementwise/elementwise.h"
#include "tests/support/op_check.h"

namespace weft {
namespace {

using testing::normal;
using testing::OpCase;
using testing::uniform;

const Shape kShapes[] = {{0, 2, 3}, {1, 1, 2}, {17, 3, 5}, {300, 2, 65}};

TEST(Denominators, GradientsOfTheColumnOfOnes) {
  for (const Shape& v : kShapes) {
    check_op(OpCase{.name = v.str(), .inputs = {normal(v, 1)}, .function = [](Tape& tape, std::span<const Var> in) {
                      return std::vector{append_ones(tape, in[0])};
                    }});
  }
}

// Sums whose last column is positive, as non-negative features make it.
Tensor positive_sums(const Shape& shape, std::uint64_t seed) {
  const Tensor sums = normal(shape, seed), denominators = uniform(shape, seed + 1, 0.5, 3.0);
  const std::int64_t W = shape.back();
  for (std::int64_t i = W - 1; i < sums.numel(); i += W) sums.data<double>()[i] = denominators.data<double>()[i];
  return sums;
}

TEST(Denominators, GradientsOfTheDivision) {
  for (const Shape& shape : kShapes) {
    check_op(OpCase{
        .name = shape.str(), .inputs = {positive_sums(shape, 1)}, .function = [](Tape& tape, std::span<const Var> in) {
          return std::vector{divide_by_denominator(tape, in[0])};
        }});
  }
}

// The count in the last column of the totals is no variable: it is held fixed.
TEST(Denominators, GradientsOfTheMagnitudeAwareForm) {
  for (const Shape& shape : kShapes) {
    Shape narrow = shape;
    narrow.set(2, shape[2] - 1);
    for (const double share : {0.0, 0.4}) {
      check_op(OpCase{.name = fmt::format("{} share {}", shape.str(), share),
                      .inputs = {positive_sums(shape, 1), normal(narrow, 3)},
                      .function = [share](Tape& tape, std::span<const Var> in) {
                        const Var totals = scale(tape, append_ones(tape, in[1]), 3.0);  // of three values
                        return std::vector{magnitude_aware(tape, in[0], totals, share)};
                      }});
    }
  }
}

TEST(Denominators, AClampedDenominatorPassesNothingOn) {
  const Tensor sums = Tensor::from({2, 1, 3}, std::vector<double>{2e-6, -4e-6, 5e-7, 3.0, 1.0, 2.0});
  const Tensor ones = Tensor::from({2, 1, 2}, std::vector<double>(4, 1.0));
  const Tensor totals = Tensor::from({2, 1, 3}, std::vector<double>{1.0, 2.0, 1.0, 3.0, 4.0, 2.0});
  Tape tape(heap_allocator(Hygiene::hostile));
  const Var divided = tape.leaf(sums), aware = tape.leaf(sums);
  const Var o = divide_by_denominator(tape, divided), p = magnitude_aware(tape, aware, Tape::constant(totals));
  EXPECT_NEAR(o.value.data<double>()[0], 2.0, 1e-12);  // 2e-6 / 1e-6
  EXPECT_NEAR(o.value.data<double>()[2], 1.5, 1e-15);
  EXPECT_NEAR(p.value.data<double>()[2], 1.5 * 3.0 - 1.0 * 3.0, 1e-15);
  tape.backward(std::array{o, p}, std::array{ones, ones});
  const double* d = tape.gradient(divided).data<double>();
  EXPECT_NEAR(d[0], 1e6, 1e-6);
  EXPECT_EQ(d[2], 0.0);
  EXPECT_NEAR(d[5], -1.0, 1e-15);  // -(3 + 1) / 2^2
  EXPECT_EQ(tape.gradient(aware).data<double>()[2], 0.0);
  EXPECT_NEAR(tape.gradient(aware).data<double>()[5], -4.0 / 4.0 - 7.0 / 2.0, 1e-14);
}

}  // namespace
}  // namespace weft
