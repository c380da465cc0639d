#include <set>

#include "autograd/bench_case.h"
#include "autograd/ops/embedding/embedding.h"
#include "autograd/random_tensor.h"

namespace weft {

std::vector<BenchCase> embedding_bench(const BenchShape& s) {
  // In backward the rows of the table that occur are read and written in f32.
  const auto lookup = [&](const char* name, std::int64_t vocabulary, const std::function<double(double)>& quantile) {
    const Tensor draws = uniform({s.T}, 1, 0.0, 1.0), ids = Tensor::empty({s.T}, DType::i32);
    std::set<std::int32_t> occur;
    for (std::int64_t t = 0; t < s.T; ++t) {
      const double place = quantile(draws.data<double>()[t]);
      const auto id = static_cast<std::int32_t>(place * static_cast<double>(vocabulary - 1));
      ids.data<std::int32_t>()[t] = id;
      occur.insert(id);
    }
    return BenchCase{.name = name,
                     .inputs = {bench_weight({vocabulary, s.width}, 0.02)},
                     .function =
                         [tokens = BenchConstant(ids)](Tape& tape, std::span<const Var> in) {
                           return std::vector{embedding(tape, tokens.on(tape), in[0])};
                         },
                     .forward = {.elements = 2 * s.row()},
                     .backward = {.elements = s.row(),
                                  .wide = 2.0 * static_cast<double>(occur.size()) * static_cast<double>(s.width)}};
  };
  // Squares: small ids are frequent, as in text.
  const auto text = [](double u) { return u * u; };
  return {lookup("embedding", s.vocabulary, text),
          lookup("embedding, five times the vocabulary", 5 * s.vocabulary, text),
          lookup("embedding, one token for three in ten", s.vocabulary,
                 [](double u) { return u < 0.3 ? 0.5 : (u - 0.3) / 0.7; }),
          lookup("embedding, one token", s.vocabulary, [](double) { return 0.0; })};
}

}  // namespace weft
