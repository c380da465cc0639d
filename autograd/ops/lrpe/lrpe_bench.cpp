#include "autograd/bench_case.h"
#include "autograd/ops/lrpe/lrpe.h"

namespace weft {

std::vector<BenchCase> lrpe_bench(const BenchShape& s) {
  const DocumentsPtr documents =
      Documents::from_lengths(std::vector<std::int32_t>(16, static_cast<std::int32_t>(s.T / 16)));
  return {
      {.name = "lrpe",
       .inputs = {{{s.T, s.H, s.D}}, bench_vector({s.H, s.D})},
       .function = [documents](Tape& tape,
                               std::span<const Var> in) { return std::vector{lrpe(tape, in[0], in[1], documents)}; },
       .forward = {.elements = 3 * s.row()},
       .backward = {.elements = 4 * s.row()}}};
}

}  // namespace weft
