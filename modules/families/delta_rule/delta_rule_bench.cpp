#include <cmath>

#include "autograd/bench_case.h"
#include "modules/families/delta_rule/delta_rule.h"

namespace weft {

std::vector<BenchCase> delta_rule_bench(const BenchShape& s) {
  const std::int64_t H = 2 * s.H;
  // Floating-point operations of a token and head by the chunked form; the specification gives them for D = 128.
  const double per_square = static_cast<double>(s.D * s.D) / (128.0 * 128.0);
  const auto rule = [&](const char* name, std::int64_t T, bool per_channel) {
    const DocumentsPtr documents = Documents::single(T);
    const double x = static_cast<double>(T * H * s.D), g = static_cast<double>(T * H * (per_channel ? s.D : 1));
    const double unit = 1.0 / std::sqrt(static_cast<double>(s.D)), heads = static_cast<double>(T * H);
    const BenchInput in{{T, H, s.D}, BenchInput::Kind::activation, unit};
    return BenchCase{.name = fmt::format("delta_rule, {}, {} tokens", name, T),
                     .inputs = {in, in, in, bench_vector(per_channel ? Shape{T, H, s.D} : Shape{T, H}, 0.03, -0.25),
                                bench_vector({T, H}, 0.1, 0.5)},
                     .function =
                         [documents, unit](Tape& tape, std::span<const Var> v) {
                           return std::vector{delta_rule(tape, v[0], v[1], v[2], v[3], v[4], {}, documents, unit).o};
                         },
                     .forward = {.elements = 4 * x, .wide = g, .flops = 1.44e5 * per_square * heads},
                     .backward = {.elements = 7 * x, .wide = 2 * g, .flops = 3.75e5 * per_square * heads}};
  };
  return {rule("a decay for each channel", s.T / 8, true), rule("a decay for each channel", s.T / 2, true),
          rule("a decay for each head", s.T / 8, false), rule("a decay for each head", s.T / 2, false)};
}

}  // namespace weft
