#include "autograd/bench_case.h"
#include "autograd/ops/linear_cross_entropy/linear_cross_entropy.h"

namespace weft {

std::vector<BenchCase> linear_cross_entropy_bench(const BenchShape& s) {
  // Forward also computes the gradients, as in training; see the header.
  const std::int64_t T = s.T / 8;
  const Tensor labels = Tensor::empty({T}, DType::i32);
  for (std::int64_t t = 0; t < T; ++t) labels.data<std::int32_t>()[t] = static_cast<std::int32_t>(t * 7919 % s.classes);
  return {{.name = "linear_cross_entropy",
           .inputs = {{{T, s.width}}, bench_weight({s.classes, s.width}, 0.02)},
           .function =
               [labels = BenchConstant(labels), T](Tape& tape, std::span<const Var> in) {
                 return std::vector{linear_cross_entropy(
                                        tape, in[0], in[1], labels.on(tape), {},
                                        {.denominator = static_cast<double>(T), .token_losses = {}, .unit_seed = true})
                                        .loss};
               },
           .forward = {.flops = 6.0 * static_cast<double>(T * s.width) * static_cast<double>(s.classes)},
           .backward = {}}};
}

}  // namespace weft
