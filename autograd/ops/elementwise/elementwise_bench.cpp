#include "autograd/bench_case.h"
#include "autograd/ops/elementwise/elementwise.h"

namespace weft {

std::vector<BenchCase> elementwise_bench(const BenchShape& s) {
  const double N = s.row();
  const BenchInput x{{s.T, s.width}}, row = bench_vector({s.width});
  const auto two = [&](const char* name, const BenchInput& second, Var (*op)(Tape&, const Var&, const Var&),
                       double forward, double backward) {
    return BenchCase{
        .name = name,
        .inputs = {x, second},
        .function = [op](Tape& tape, std::span<const Var> in) { return std::vector{op(tape, in[0], in[1])}; },
        .forward = {.elements = forward * N},
        .backward = {.elements = backward * N}};
  };
  // The gradient of a sum is handed on, not copied; that of a row still has to be summed up.
  return {two("add", x, add, 3, 0),
          two("mul", x, mul, 3, 5),
          two("add_row", row, add_row, 2, 1),
          two("mul_row", row, mul_row, 2, 3),
          {.name = "scale",
           .inputs = {x},
           .function = [](Tape& tape, std::span<const Var> in) { return std::vector{scale(tape, in[0], 0.5)}; },
           .forward = {.elements = 2 * N},
           .backward = {.elements = 2 * N}}};
}

}  // namespace weft
