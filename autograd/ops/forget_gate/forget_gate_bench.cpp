#include "autograd/bench_case.h"
#include "autograd/ops/forget_gate/forget_gate.h"

namespace weft {

std::vector<BenchCase> forget_gate_bench(const BenchShape& s) {
  const double N = s.row();
  return {{.name = "forget_gate",
           .inputs = {{{s.T, s.width}}},
           .function =
               [](Tape& tape, std::span<const Var> in) {
                 const ForgetGate gate = forget_gate(tape, in[0], 0.3);
                 return std::vector{gate.k, gate.g};
               },
           .forward = {.elements = 2 * N, .wide = N},
           .backward = {.elements = 3 * N, .wide = N}}};
}

}  // namespace weft
