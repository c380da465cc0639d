#include "autograd/bench_case.h"
#include "autograd/ops/rms_norm/rms_norm.h"

namespace weft {

std::vector<BenchCase> rms_norm_bench(const BenchShape& s) {
  const double N = s.row();
  const auto norm = [](Tape& tape, std::span<const Var> in) { return std::vector{rms_norm(tape, in[0], in[1])}; };
  const auto plain = [&](const char* name, std::int64_t rows, std::int64_t width, std::int64_t heads) {
    const Shape shape = heads == 1 ? Shape{rows, width} : Shape{rows / heads, heads, width};
    const Shape weight = heads == 1 ? Shape{width} : Shape{heads, width};
    return BenchCase{.name = name,
                     .inputs = {{shape}, bench_vector(weight, 0.1, 1.0)},
                     .function = norm,
                     .forward = {.elements = 2 * N},
                     .backward = {.elements = 3 * N}};
  };
  return {plain("rms_norm", s.T, s.width, 1),
          plain("rms_norm, half the width", 2 * s.T, s.width / 2, 1),
          plain("rms_norm, twice the width", s.T / 2, 2 * s.width, 1),
          plain("rms_norm, heads with weights of their own", s.T * s.H, s.D, s.H),
          plain("rms_norm, heads with one weight", s.T * s.H, s.D, 1),
          {.name = "add_rms_norm",
           .inputs = {{{s.T, s.width}}, {{s.T, s.width}}, bench_vector({s.width}, 0.1, 1.0)},
           .function =
               [](Tape& tape, std::span<const Var> in) {
                 const auto [sum, y] = add_rms_norm(tape, in[0], in[1], in[2]);
                 return std::vector{sum, y};
               },
           .forward = {.elements = 4 * N},
           .backward = {.elements = 4 * N}}};
}

}  // namespace weft
