#include "autograd/bench_case.h"
#include "autograd/ops/gate/gate.h"

namespace weft {

std::vector<BenchCase> gate_bench(const BenchShape& s) {
  const double N = s.row();
  const BenchInput heads{{s.T, s.H, s.D}};
  const auto each = [&](const char* name, Var (*op)(Tape&, const Var&, const Var&)) {
    return BenchCase{
        .name = name,
        .inputs = {heads, heads},
        .function = [op](Tape& tape, std::span<const Var> in) { return std::vector{op(tape, in[0], in[1])}; },
        .forward = {.elements = 3 * N},
        .backward = {.elements = 5 * N}};
  };
  BenchCase per_head = each("sigmoid_gate, one for each head", sigmoid_gate);
  per_head.inputs[1] = bench_vector({s.T, s.H});
  per_head.forward = {.elements = 2 * N};
  per_head.backward = {.elements = 3 * N};
  return {each("silu_gate", silu_gate), each("sigmoid_gate", sigmoid_gate), each("gelu_gate", gelu_gate),
          each("linear_gate", linear_gate), per_head};
}

}  // namespace weft
