// What must not change a bit: later tokens, other documents, packing, splits at chunks, threads; and memory that does
// not grow with the number of chunks.
#include <omp.h>

#include "modules/families/titans_memory/titans_memory_test_cases.h"
#include "tests/support/packed_invariance.h"

namespace weft {
namespace {

using namespace testing;

TitansData inputs(const TitansCase& c, std::uint64_t seed = 1) {
  return rounded(make_data(c, seed), DType::f32);
}

class TitansInvariance : public ::testing::TestWithParam<std::int64_t> {
 protected:
  TitansCase with(std::vector<std::int32_t> lengths) const {
    return {.lengths = std::move(lengths), .m = GetParam(), .d_k = 12, .d_v = 20};
  }
};

TEST_P(TitansInvariance, TheFutureChangesNothing) {
  TitansCase c = with({50});
  c.final_gradient = false;
  expect_later_tokens_do_not_reach_earlier_outputs(c, inputs(c), inputs(c, 901));
  expect_tokens_after_the_last_gradient_get_none(c, inputs(c));
}

TEST_P(TitansInvariance, DocumentsNeitherSeeEachOtherNorMindBeingPacked) {
  const TitansCase c = with({20, 0, 33, 1, 64, 17});
  expect_document_is_not_seen(c, inputs(c), inputs(c, 901), 2);
  expect_packed_documents_equal_each_alone(c, inputs(c));
}

TEST_P(TitansInvariance, SplittingASequenceCarriesTheStateAndItsGradient) {
  for (const std::int32_t split : {0, 16, 48, 23, 37, 71}) {
    TitansCase c = with({71});
    c.phase = {0};
    TitansCase tail = c;
    tail.phase = {split % 16};
    expect_split_carries_the_state(c, c, tail, make_data(c), split, 16, kFp64Chunked);
  }
}

TEST_P(TitansInvariance, ThreadsGiveTheSameBits) {
  for (const TitansCase& c : {with({300}), with({5, 100, 0, 64, 7, 20})}) {
    expect_threads_give_the_same_bits(c, inputs(c), {2, 3});
  }
}

INSTANTIATE_TEST_SUITE_P(Hidden, TitansInvariance, ::testing::Values(0, 14), ::testing::PrintToStringParamName());

// Backward keeps about twice the root of the number of chunks of states, and the inputs.
TEST(TitansMemorySize, GrowsWithTheRootOfTheChunks) {
  const auto peak = [](std::int32_t tokens) {
    const TitansCase c{.lengths = {tokens}, .H = 1, .d_k = 32, .d_v = 32, .C = 4, .final_gradient = false};
    const TitansData data = rounded(make_data(c), DType::f32);
    const auto memory = heap_allocator();
    Tape tape(memory);
    const TitansInputs in{tape.leaf(data.x.q),    tape.leaf(data.x.k),        tape.leaf(data.x.v),
                          tape.leaf(data.x.keep), tape.leaf(data.x.momentum), tape.leaf(data.x.rate)};
    const TitansOutput out =
        titans_memory(tape, in, {{}, tape.leaf(data.x.w2)}, c.C, Documents::single(tokens), FinalState::skip);
    tape.backward(out.o, data.d_o);
    return static_cast<double>(memory->stats().peak_bytes);
  };
  const double per_token = 4.0 * (4 * 32 + 3);  // o and gradients
  const double state = 4.0 * 3.0 * 32 * 32 * omp_get_max_threads();
  EXPECT_LE(peak(4096) - peak(1024), 3072 * per_token + 2.0 * (32 - 16) * state + 65536);
}

}  // namespace
}  // namespace weft
