#include "autograd/bench_case.h"
#include "autograd/ops/norm_rope/norm_rope.h"

namespace weft {

std::vector<BenchCase> norm_rope_bench(const BenchShape& s) {
  const auto table = std::make_shared<const RopeTable>(RopeConfig{.rotary_dim = s.D});
  const DocumentsPtr documents =
      Documents::from_lengths(std::vector<std::int32_t>(16, static_cast<std::int32_t>(s.T / 16)));
  return {{.name = "norm_rope",
           .inputs = {{{s.T, s.H, s.D}}, bench_vector({s.D}, 0.1, 1.0)},
           .function =
               [table, documents](Tape& tape, std::span<const Var> in) {
                 return std::vector{norm_rope(tape, in[0], in[1], documents, *table)};
               },
           .forward = {.elements = 2 * s.row()},
           .backward = {.elements = 3 * s.row()}}};
}

}  // namespace weft
