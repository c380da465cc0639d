#include "autograd/bench_case.h"
#include "autograd/ops/activation/activation.h"

namespace weft {

std::vector<BenchCase> activation_bench(const BenchShape& s) {
  const double N = s.row();
  const BenchInput x{{s.T, s.width}};
  const auto wide = [&](const char* name, auto op) {
    return BenchCase{.name = name,
                     .inputs = {x},
                     .function = [op](Tape& tape, std::span<const Var> in) { return std::vector{op(tape, in[0])}; },
                     .forward = {.elements = N, .wide = N},
                     .backward = {.elements = 2 * N, .wide = N}};
  };
  return {{.name = "silu",
           .inputs = {x},
           .function = [](Tape& tape, std::span<const Var> in) { return std::vector{silu(tape, in[0])}; },
           .forward = {.elements = 2 * N},
           .backward = {.elements = 3 * N}},
          wide("sigmoid", [](Tape& tape, const Var& v) { return sigmoid(tape, v); }),
          wide("log_sigmoid", [](Tape& tape, const Var& v) { return log_sigmoid(tape, v); }),
          wide("softplus", [](Tape& tape, const Var& v) { return softplus(tape, v); })};
}

}  // namespace weft
