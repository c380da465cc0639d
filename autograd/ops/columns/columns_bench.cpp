#include "autograd/bench_case.h"
#include "autograd/ops/columns/columns.h"

namespace weft {

std::vector<BenchCase> columns_bench(const BenchShape& s) {
  const double N = s.row();
  const std::int64_t half = s.D / 2;
  return {
      {.name = "split_columns",
       .inputs = {{{s.T, s.H, s.D}}},
       .function =
           [half](Tape& tape, std::span<const Var> in) {
             const auto [a, b] = split_columns(tape, in[0], half);
             return std::vector{a, b};
           },
       .forward = {.elements = 2 * N},
       .backward = {.elements = 2 * N}},
      {.name = "join_columns, a part that heads share",
       .inputs = {{{s.T, s.H, half}}, {{s.T, 1, half}}},
       .function = [](Tape& tape, std::span<const Var> in) { return std::vector{join_columns(tape, in[0], in[1])}; },
       .forward = {.elements = (1.5 + 0.5 / static_cast<double>(s.H)) * N},
       .backward = {.elements = (1.5 + 0.5 / static_cast<double>(s.H)) * N}}};
}

}  // namespace weft
