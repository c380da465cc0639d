#include "autograd/bench_case.h"
#include "autograd/ops/cast/cast.h"

namespace weft {

std::vector<BenchCase> cast_bench(const BenchShape& s) {
  // Where activations are f32 already, cast gives its input back and takes no time.
  return {{.name = "cast, to the type of statistics",
           .inputs = {{{s.T, s.width}}},
           .function =
               [](Tape& tape, std::span<const Var> in) {
                 return std::vector{cast(tape, in[0], accumulator_dtype(in[0].dtype()))};
               },
           .forward = {.elements = s.row(), .wide = s.row()},
           .backward = {.elements = s.row(), .wide = s.row()}}};
}

}  // namespace weft
