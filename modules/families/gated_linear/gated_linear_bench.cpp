#include "autograd/bench_case.h"
#include "modules/families/gated_linear/gated_linear.h"

namespace weft {

std::vector<BenchCase> gated_linear_bench(const BenchShape& s) {
  const std::int64_t T = s.T / 2, H = 2 * s.H;
  const auto recurrence = [&](const char* name, std::int64_t tokens, std::int64_t documents, const BenchInput& decay,
                              bool learned) {
    const DocumentsPtr row = Documents::from_lengths(
        std::vector<std::int32_t>(static_cast<std::size_t>(documents), static_cast<std::int32_t>(tokens / documents)));
    const double x = static_cast<double>(tokens * H * s.D),
                 g = learned ? static_cast<double>(decay.shape.numel()) : 0.0;
    const BenchInput heads{{tokens, H, s.D}, BenchInput::Kind::activation, 0.3};
    return BenchCase{
        .name = fmt::format("gated_linear, {}, {} tokens", name, tokens),
        .inputs = {heads, heads, heads, decay},
        .function =
            [row, learned](Tape& tape, std::span<const Var> in) {
              const Var g_in = learned ? in[3] : Tape::constant(in[3].value);
              // As in training, which wants no final states.
              return std::vector{gated_linear(tape, in[0], in[1], in[2], g_in, {}, row, 0.1, {.final_state = false}).o};
            },
        .forward = {.elements = 4 * x, .wide = g},
        .backward = {.elements = 7 * x, .wide = 2 * g}};
  };
  // Decays are logarithms, of numbers below 1.
  return {recurrence("constant decays", T, 1, bench_vector({H}, 0.0, -0.01), false),
          recurrence("constant decays", T / 4, 1, bench_vector({H}, 0.0, -0.01), false),
          recurrence("constant decays, 64 documents", T, 64, bench_vector({H}, 0.0, -0.01), false),
          recurrence("a decay for each head", T, 1, bench_vector({T, H}, 0.01, -0.1), true),
          recurrence("a decay for each channel", T / 4, 1, bench_vector({T / 4, H, s.D}, 0.01, -0.1), true)};
}

}  // namespace weft
