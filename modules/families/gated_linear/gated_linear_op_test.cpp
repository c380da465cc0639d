// The operation on the tape, on both devices: the same small cases for each kind of decay, with and without a map.
#include <gtest/gtest.h>

#include "modules/families/gated_linear/gated_linear.h"
#include "tests/support/op_check.h"

namespace weft {
namespace {

using namespace testing;

OpCase recurrence_case(DecayKind kind, std::int64_t d_k, std::int64_t d_v, std::int64_t H_k = 2) {
  const std::vector<std::int32_t> lengths = {3, 0, 21};
  const std::int64_t T = 24, H = 2;
  const DocumentsPtr documents = Documents::from_lengths(lengths);
  const Shape decay = kind == DecayKind::constant ? Shape{H}
                      : kind == DecayKind::scalar ? Shape{T, H}
                                                  : Shape{T, H, d_k};
  const Tensor g = uniform(decay, 4, -0.6, -0.05);
  std::vector<OpInput> inputs =
      activations({normal({T, H_k, d_k}, 1, 0.3), normal({T, H_k, d_k}, 2, 0.3), normal({T, H, d_v}, 3)});
  inputs.push_back(vector_input(normal({3, H, d_k, d_v}, 5)));
  if (kind != DecayKind::constant) inputs.push_back(vector_input(g));
  const auto function = [=](Tape& tape, std::span<const Var> in) -> std::vector<Var> {
    Tensor constant = g;
    if (in.size() == 4) constant = tape.here(cast(g, accumulator_dtype(in[0].dtype())));
    const Var decays = in.size() == 5 ? in[4] : Tape::constant(constant);
    const auto [o, final_state] = gated_linear(tape, in[0], in[1], in[2], decays, in[3], documents, 0.6);
    return {o, final_state};
  };
  return {.name = fmt::format("decay {} d {}x{} H_k {}", static_cast<int>(kind), d_k, d_v, H_k),
          .inputs = std::move(inputs),
          .function = function};
}

OP_TEST(GatedLinearOp, IsTheSameOnBothDevices) {
  for (const DecayKind kind : {DecayKind::constant, DecayKind::scalar, DecayKind::vector}) {
    check_op(recurrence_case(kind, 64, 64));
    check_op(recurrence_case(kind, 5, 3));
    if (kind != DecayKind::vector) check_op(recurrence_case(kind, 64, 64, 1));
  }
}

}  // namespace
}  // namespace weft
