#include "autograd/bench_case.h"
#include "autograd/ops/linear/linear.h"

namespace weft {

std::vector<BenchCase> linear_bench(const BenchShape& s) {
  const auto product = [&](const char* name, std::int64_t in_width, std::int64_t out_width) {
    const double x = static_cast<double>(s.T * in_width), y = static_cast<double>(s.T * out_width);
    const double w = static_cast<double>(in_width * out_width), flops = 2.0 * static_cast<double>(s.T) * w;
    return BenchCase{
        .name = name,
        .inputs = {{{s.T, in_width}}, bench_weight({out_width, in_width}, 0.02)},
        .function = [](Tape& tape, std::span<const Var> in) { return std::vector{linear(tape, in[0], in[1])}; },
        .forward = {.elements = x + y + w, .flops = flops},
        .backward = {.elements = 2 * x + 2 * y + w, .wide = 2 * w, .flops = 2 * flops}};
  };
  return {product("linear, square", s.width, s.width), product("linear, 1 to 2.75", s.width, s.width / 4 * 11),
          product("linear, 2.75 to 1", s.width / 4 * 11, s.width)};
}

}  // namespace weft
