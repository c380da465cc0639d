#include "autograd/bench_case.h"
#include "autograd/ops/rows/rows.h"

namespace weft {

std::vector<BenchCase> rows_bench(const BenchShape& s) {
  // Every other row, as where documents are cut out of a packed row.
  std::vector<std::int32_t> index;
  for (std::int64_t t = 0; t < s.T; t += 2) index.push_back(static_cast<std::int32_t>(t));
  const auto map = std::make_shared<const RowMap>(index, s.T);
  return {
      {.name = "take_rows, every other",
       .inputs = {{{s.T, s.width}}},
       .function = [map](Tape& tape, std::span<const Var> in) { return std::vector{take_rows(tape, {in[0]}, map)}; },
       .forward = {.elements = s.row()},
       .backward = {.elements = 1.5 * s.row()}}};
}

}  // namespace weft
