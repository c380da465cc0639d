#include "autograd/bench_case.h"
#include "autograd/ops/swiglu/swiglu.h"

namespace weft {

std::vector<BenchCase> swiglu_bench(const BenchShape& s) {
  const BenchInput half{{s.T, s.width}};
  return {{.name = "swiglu",
           .inputs = {half, half},
           .function = [](Tape& tape, std::span<const Var> in) { return std::vector{swiglu(tape, in[0], in[1])}; },
           .forward = {.elements = 3 * s.row()},
           .backward = {.elements = 5 * s.row()}}};
}

}  // namespace weft
