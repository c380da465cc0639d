#include "autograd/bench_case.h"
#include "autograd/ops/decay_gate/decay_gate.h"

namespace weft {

std::vector<BenchCase> decay_gate_bench(const BenchShape& s) {
  const double N = s.row();
  const auto gate = [&](const char* name, auto op) {
    return BenchCase{
        .name = name,
        .inputs = {{{s.T, s.H, s.D}}, bench_vector({s.H}), bench_vector({s.H * s.D})},
        .function = [op](Tape& tape, std::span<const Var> in) { return std::vector{op(tape, in[0], in[1], in[2])}; },
        .forward = {.elements = N, .wide = N},
        .backward = {.elements = 2 * N, .wide = N}};
  };
  return {gate("softplus_decay, per channel",
               [](Tape& tape, const Var& f, const Var& a, const Var& b) { return softplus_decay(tape, f, a, b); }),
          gate("bounded_decay, per channel", [](Tape& tape, const Var& f, const Var& a, const Var& b) {
            return bounded_decay(tape, f, a, b, -5.0);
          })};
}

}  // namespace weft
