#include "autograd/bench_case.h"
#include "autograd/ops/embedding/embedding.h"
#include "autograd/random_tensor.h"

namespace weft {

std::vector<BenchCase> embedding_bench(const BenchShape& s) {
  const double N = s.row();
  // Squares: small ids are frequent, as in text. In backward the rows that occur are read and written in f32.
  const Tensor draws = uniform({s.T}, 1, 0.0, 1.0), ids = Tensor::empty({s.T}, DType::i32);
  std::vector<bool> occurs(static_cast<std::size_t>(s.vocabulary));
  double rows = 0.0;
  for (std::int64_t t = 0; t < s.T; ++t) {
    const double u = draws.data<double>()[t];
    const auto id = static_cast<std::int32_t>(u * u * static_cast<double>(s.vocabulary - 1));
    ids.data<std::int32_t>()[t] = id;
    rows += occurs[static_cast<std::size_t>(id)] ? 0.0 : 1.0;
    occurs[static_cast<std::size_t>(id)] = true;
  }
  const auto lookup = [&](const char* name, const Tensor& tokens, double different) {
    return BenchCase{.name = name,
                     .inputs = {bench_weight({s.vocabulary, s.width}, 0.02)},
                     .function =
                         [tokens = BenchConstant(tokens)](Tape& tape, std::span<const Var> in) {
                           return std::vector{embedding(tape, tokens.on(tape), in[0])};
                         },
                     .forward = {.elements = 2 * N},
                     .backward = {.elements = N, .wide = 2 * different * static_cast<double>(s.width)}};
  };
  const Tensor same = Tensor::zeros({s.T}, DType::i32);
  return {lookup("embedding", ids, rows), lookup("embedding, one token", same, 1.0)};
}

}  // namespace weft
