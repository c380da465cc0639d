#include "autograd/bench_case.h"
#include "autograd/ops/l2_norm/l2_norm.h"

namespace weft {

std::vector<BenchCase> l2_norm_bench(const BenchShape& s) {
  return {{.name = "l2_norm",
           .inputs = {{{s.T, s.H, s.D}}},
           .function = [](Tape& tape, std::span<const Var> in) { return std::vector{l2_norm(tape, in[0])}; },
           .forward = {.elements = 2 * s.row()},
           .backward = {.elements = 3 * s.row()}}};
}

}  // namespace weft
