#include "autograd/bench_case.h"
#include "autograd/ops/head_linear/head_linear.h"

namespace weft {

std::vector<BenchCase> head_linear_bench(const BenchShape& s) {
  const auto products = 2.0 * s.row() * static_cast<double>(s.D);
  return {{.name = "head_linear",
           .inputs = {{{s.T, s.H, s.D}}, bench_weight({s.H, s.D, s.D}, 0.1)},
           .function = [](Tape& tape, std::span<const Var> in) { return std::vector{head_linear(tape, in[0], in[1])}; },
           .forward = {.elements = 2 * s.row(), .flops = products},
           .backward = {.elements = 3 * s.row(), .flops = 2 * products}}};
}

}  // namespace weft
