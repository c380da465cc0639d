#include "autograd/ops/lrpe/lrpe.h"

#include <cmath>

#include "tests/support/op_check.h"

namespace weft {
namespace {

using testing::bitwise_equal;
using testing::cast;
using testing::normal;
using testing::OpCase;
using testing::uniform;

DocumentsPtr documents_of(std::vector<std::int32_t> lengths) {
  return Documents::from_lengths(lengths);
}

OP_TEST(Lrpe, GradientsAndPrecision) {
  const std::vector<std::vector<std::int32_t>> rows{{0}, {1}, {2, 0, 15}, {63, 66}, {129, 1, 1}};
  for (const auto& lengths : rows) {
    const DocumentsPtr documents = documents_of(lengths);
    const std::int64_t T = documents->tokens();
    check_op(OpCase{.name = fmt::format("T {}", T),
                    .inputs = {normal({T, 2, 3}, 1), testing::vector_input(uniform({2, 3}, 2, 0.0, 1.0))},
                    .function = [documents](Tape& tape, std::span<const Var> in) {
                      return std::vector{lrpe(tape, in[0], in[1], documents)};
                    }});
  }
}

// Products of two encoded rows depend on their distance alone: sum_c q_c k_c cos((t - s) theta_c).
TEST(Lrpe, ProductsDependOnRelativePositions) {
  const std::int64_t D = 5;
  const Tensor q = normal({1, 1, D}, 1), k = normal({1, 1, D}, 2), theta = uniform({1, D}, 3, 0.0, 1.0);
  Tape tape(heap_allocator(Hygiene::hostile), Tape::Mode::inference);
  const auto at = [&](const Tensor& x, std::int32_t position) {
    return lrpe(tape, Tape::constant(x), Tape::constant(theta), Documents::single(1, position)).value;
  };
  for (const std::int32_t s : {0, 17, 64, 100000}) {
    for (const std::int32_t distance : {0, 1, 63, 500}) {
      const Tensor a = at(q, s + distance), b = at(k, s);
      double product = 0.0, expected = 0.0;
      for (std::int64_t c = 0; c < 2 * D; ++c) product += a.data<double>()[c] * b.data<double>()[c];
      for (std::int64_t c = 0; c < D; ++c) {
        expected += q.data<double>()[c] * k.data<double>()[c] * std::cos(distance * theta.data<double>()[c]);
      }
      EXPECT_NEAR(product, expected, 1e-10) << s << " " << distance;
    }
  }
}

// The bits depend on the position alone: packed, alone, and continued.
TEST(Lrpe, PackingAndContinuationAreBitwise) {
  const Tensor x = cast(normal({5000, 2, 4}, 1), DType::f32), theta = cast(uniform({2, 4}, 2, 0.0, 1.0), DType::f32);
  Tape tape(heap_allocator(Hygiene::hostile), Tape::Mode::inference);
  const auto run = [&](std::int64_t begin, std::int64_t end, const DocumentsPtr& documents) {
    return cast(lrpe(tape, Tape::constant(x.rows(begin, end)), Tape::constant(theta), documents).value, DType::f32);
  };
  const Tensor packed = run(0, 5000, documents_of({40, 0, 4960}));
  EXPECT_TRUE(bitwise_equal(packed.rows(0, 40), run(0, 40, Documents::single(40))));
  EXPECT_TRUE(bitwise_equal(packed.rows(40, 5000), run(40, 5000, Documents::single(4960))));
  EXPECT_TRUE(bitwise_equal(packed.rows(4900, 5000), run(4900, 5000, Documents::single(100, 4860))));
}

TEST(Lrpe, RefusesForeignShapes) {
  Tape tape(heap_allocator());
  const Var x = tape.leaf(normal({4, 2, 6}, 1));
  EXPECT_THROW(lrpe(tape, x, tape.leaf(normal({2, 5}, 1)), Documents::single(4)), Error);
  EXPECT_THROW(lrpe(tape, x, tape.leaf(normal({2, 6}, 1)), Documents::single(5)), Error);
}

}  // namespace
}  // namespace weft
