#include "autograd/bench_case.h"
#include "autograd/ops/repeat_heads/repeat_heads.h"

namespace weft {

std::vector<BenchCase> repeat_heads_bench(const BenchShape& s) {
  const std::int64_t groups = s.H / 8;
  return {
      {.name = "repeat_heads, by 8",
       .inputs = {{{s.T, groups, s.D}}},
       .function = [H = s.H](Tape& tape, std::span<const Var> in) { return std::vector{repeat_heads(tape, in[0], H)}; },
       .forward = {.elements = 1.125 * s.row()},
       .backward = {.elements = 1.125 * s.row()}}};
}

}  // namespace weft
