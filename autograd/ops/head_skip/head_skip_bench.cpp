#include "autograd/bench_case.h"
#include "autograd/ops/head_skip/head_skip.h"

namespace weft {

std::vector<BenchCase> head_skip_bench(const BenchShape& s) {
  const BenchInput heads{{s.T, s.H, s.D}};
  return {{.name = "head_skip",
           .inputs = {heads, heads, bench_vector({s.H})},
           .function = [](Tape& tape,
                          std::span<const Var> in) { return std::vector{head_skip(tape, in[0], in[1], in[2])}; },
           .forward = {.elements = 3 * s.row()},
           .backward = {.elements = 3 * s.row()}}};
}

}  // namespace weft
