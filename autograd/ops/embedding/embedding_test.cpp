#include "autograd/ops/embedding/embedding.h"

#include <omp.h>

#include "autograd/philox.h"
#include "tests/support/op_check.h"

namespace weft {
namespace {

using testing::bitwise_equal;
using testing::normal;
using testing::OpCase;

// Half of the tokens are token 1, the rest spread over the vocabulary.
Tensor skewed_tokens(std::int64_t T, std::int64_t V) {
  Tensor tokens = Tensor::empty({T}, DType::i32);
  for (std::int64_t t = 0; t < T; ++t) {
    RandomWords words(5, RandomStream::test, static_cast<std::uint64_t>(t));
    const bool common = words.below(2) == 0 && V > 1;
    tokens.data<std::int32_t>()[t] = common ? 1 : static_cast<std::int32_t>(words.below(static_cast<std::uint64_t>(V)));
  }
  return tokens;
}

OpCase embedding_case(std::int64_t T, std::int64_t V, std::int64_t D) {
  return {.name = fmt::format("T {} V {} D {}", T, V, D),
          .inputs = {testing::weight(normal({V, D}, 1))},
          .function = [tokens = skewed_tokens(T, V)](Tape& tape, std::span<const Var> in) {
            return std::vector{embedding(tape, tape.here(tokens), in[0])};
          }};
}

OP_TEST(Embedding, GradientsAndPrecision) {
  for (const std::int64_t T : {0, 1, 2, 15, 17, 63, 65, 129, 1000}) check_op(embedding_case(T, 50, 5));
  for (const std::int64_t D : {1, 3, 64, 257, 1030}) check_op(embedding_case(33, 7, D));
  check_op(embedding_case(20, 1, 4));
  check_op(embedding_case(3, 5000, 2));
  check_op(embedding_case(3000, 900, 64));
  for (const std::int64_t V : {13, 17, 29, 45}) check_op(embedding_case(3000, V, 8));  // runs of 50 to 110
}

TEST(Embedding, RowsAreThoseOfTheTable) {
  const Tensor table = normal({11, 3}, 1);
  const Tensor tokens = Tensor::from({4}, std::vector<std::int32_t>{10, 0, 3, 10});
  Tape tape(heap_allocator(Hygiene::hostile));
  const Tensor y = embedding(tape, tokens, Tape::constant(table)).value;
  for (int t = 0; t < 4; ++t) {
    const std::int32_t id = tokens.data<std::int32_t>()[t];
    EXPECT_TRUE(bitwise_equal(y.rows(t, t + 1).reshape({3}), table.rows(id, id + 1).reshape({3})));
  }
}

// The gradient of a frequent token is a sum of thousands of terms: the same bits with any number of threads.
TEST(Embedding, ThreadsDoNotChangeTheGradient) {
  const OpCase c = embedding_case(4000, 300, 600);
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  const Tensor one = evaluate(c, DType::f32).gradients[0];
  omp_set_num_threads(3);
  const Tensor three = evaluate(c, DType::f32).gradients[0];
  omp_set_num_threads(threads);
  EXPECT_TRUE(bitwise_equal(one, three));
}

TEST(Embedding, NamesATokenOutsideTheVocabulary) {
  Tape tape(heap_allocator());
  const Var table = tape.leaf(normal({8, 2}, 1));
  for (const std::int32_t bad : {8, -1}) {
    try {
      embedding(tape, Tensor::from({3}, std::vector<std::int32_t>{7, 0, bad}), table);
      FAIL() << bad;
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ExitCode::config);
      EXPECT_EQ(std::string(e.what()),
                fmt::format("embedding: token {} at index 2 is outside the vocabulary [0, 8)", bad));
    }
  }
}

TEST(Embedding, RefusesOtherIndexTypes) {
  Tape tape(heap_allocator());
  const Var table = tape.leaf(normal({8, 2}, 1));
  EXPECT_THROW(embedding(tape, Tensor::from({1}, std::vector<std::int64_t>{1}), table), Error);
  EXPECT_THROW(embedding(tape, Tensor::from({1, 1}, std::vector<std::int32_t>{1}), table), Error);
}

}  // namespace
}  // namespace weft
