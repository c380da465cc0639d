#include "autograd/bench_case.h"
#include "autograd/ops/short_conv/short_conv.h"

namespace weft {

std::vector<BenchCase> short_conv_bench(const BenchShape& s) {
  const DocumentsPtr documents =
      Documents::from_lengths(std::vector<std::int32_t>(16, static_cast<std::int32_t>(s.T / 16)));
  return {{.name = "short_convolution, 4 taps and silu",
           .inputs = {{{s.T, s.width}}, bench_weight({s.width, 4}, 0.5)},
           .function =
               [documents](Tape& tape, std::span<const Var> in) {
                 return std::vector{short_convolution(tape, in[0], in[1], documents, ConvolutionActivation::silu)};
               },
           .forward = {.elements = 2 * s.row()},
           .backward = {.elements = 3 * s.row()}}};
}

}  // namespace weft
