// What must not change a bit: later tokens, other documents, packing, splits at batches, threads; and memory that does
// not grow with the number of batches.
#include <omp.h>

#include "modules/families/ttt/ttt_memory_test_cases.h"
#include "tests/support/packed_invariance.h"

namespace weft {
namespace {

using namespace testing;

TttData inputs(const TttCase& c, std::uint64_t seed = 1) {
  return rounded(make_data(c, seed), DType::f32);
}

class TttInvariance : public ::testing::TestWithParam<std::int64_t> {
 protected:
  TttCase with(std::vector<std::int32_t> lengths) const {
    return {.lengths = std::move(lengths), .m = GetParam(), .d = 12};
  }
};

TEST_P(TttInvariance, TheFutureChangesNothing) {
  TttCase c = with({50});
  c.final_gradient = false;
  expect_later_tokens_do_not_reach_earlier_outputs(c, inputs(c), inputs(c, 901));
  expect_tokens_after_the_last_gradient_get_none(c, inputs(c));
}

TEST_P(TttInvariance, DocumentsNeitherSeeEachOtherNorMindBeingPacked) {
  const TttCase c = with({20, 0, 33, 1, 64, 17});
  expect_document_is_not_seen(c, inputs(c), inputs(c, 901), 2);
  expect_packed_documents_equal_each_alone(c, inputs(c));
}

TEST_P(TttInvariance, SplittingASequenceCarriesTheStateAndItsGradient) {
  for (const std::int32_t split : {0, 16, 48, 23, 37, 71}) {
    TttCase c = with({71});
    c.phase = {0};
    TttCase tail = c;
    tail.phase = {split % 16};
    const auto [whole, head, rest] = expect_split_carries_the_state(c, c, tail, make_data(c), split, 16, kFp64Chunked);
    for (const auto member : {&TttTensors::gamma, &TttTensors::beta, &TttTensors::offset}) {
      const Tensor sum = cast(head.d.*member, DType::f64);
      for (std::int64_t i = 0; i < sum.numel(); ++i) sum.data<double>()[i] += (rest.d.*member).data<double>()[i];
      EXPECT_TRUE(close(sum, whole.d.*member, 1e-11, 1e-10));
    }
  }
}

TEST_P(TttInvariance, NothingIsPendingAtTheStartOfABatch) {
  TttCase c = with({7, 23});
  c.phase = {0, 0};
  const TttData data = inputs(c);
  const TttResult expected = evaluate(c, data);
  for (std::int64_t i = 0; i < data.x.state.numel(); ++i) {
    if (i / c.P() % 2 == 1) data.x.state.data<float>()[i] = 5.0F;
  }
  expect_bitwise_equal(evaluate(c, data), expected);
}

TEST_P(TttInvariance, ThreadsGiveTheSameBits) {
  for (const TttCase& c : {with({300}), with({5, 100, 0, 64, 7, 20})}) {
    expect_threads_give_the_same_bits(c, inputs(c), {2, 3});
  }
}

INSTANTIATE_TEST_SUITE_P(Hidden, TttInvariance, ::testing::Values(0, 20), ::testing::PrintToStringParamName());

// Backward keeps about twice the root of the number of batches of states, and the inputs.
TEST(TttMemorySize, GrowsWithTheRootOfTheBatches) {
  const auto peak = [](std::int32_t tokens) {
    const TttCase c{.lengths = {tokens}, .m = 64, .H = 1, .d = 8, .b = 4, .final_gradient = false};
    TttData data = rounded(make_data(c), DType::f32);
    const auto memory = heap_allocator();
    Tape tape(memory);
    std::vector<Var> x;
    for (const Field& field : data.x.fields()) {
      x.push_back(field.tensor->defined() ? tape.leaf(*field.tensor) : Var{});
    }
    const TttOutput out = ttt_memory(tape, c, x, Documents::from_lengths(c.lengths));
    tape.backward(out.o, data.d_o);
    return static_cast<double>(memory->stats().peak_bytes);
  };
  const double per_token = 4.0 * (4 * 8 + 1);  // o and gradients
  const double state = 4.0 * 2.0 * static_cast<double>(ttt_memory_size(8, 64)) * omp_get_max_threads();
  EXPECT_LE(peak(4096) - peak(1024), 3072 * per_token + 2.0 * (32 - 16) * state + 65536);
}

}  // namespace
}  // namespace weft
