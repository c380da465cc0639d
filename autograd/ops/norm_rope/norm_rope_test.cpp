#include "autograd/ops/norm_rope/norm_rope.h"

#include "tests/support/op_check.h"

namespace weft {
namespace {

using testing::normal;
using testing::OpCase;
using testing::vector_input;

OP_TEST(NormRope, GradientsAndPrecision) {
  struct Case {
    std::int64_t H, D, D_r;
  };
  const DocumentsPtr documents = Documents::from_lengths(std::vector<std::int32_t>{1, 0, 7, 30, 27});
  // Fused widths, and those that run as two operations.
  for (const Case& c : {Case{1, 64, 64}, Case{5, 64, 64}, Case{16, 128, 128}, Case{3, 128, 128}, Case{2, 256, 256},
                        Case{3, 32, 32}, Case{2, 128, 64}, Case{2, 10, 6}}) {
    const RopeTable table(RopeConfig{.rotary_dim = c.D_r, .base = 100.0});
    check_op(OpCase{.name = fmt::format("H {} D {} D_r {}", c.H, c.D, c.D_r),
                    .inputs = {normal({65, c.H, c.D}, 1), vector_input(normal({c.D}, 2))},
                    .function = [&](Tape& tape, std::span<const Var> in) {
                      return std::vector{norm_rope(tape, in[0], in[1], documents, table)};
                    }});
  }
}

}  // namespace
}  // namespace weft
