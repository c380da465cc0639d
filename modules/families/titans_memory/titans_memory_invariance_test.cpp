// What must not change a bit: later tokens, other documents, packing, splits at chunks, threads; and memory that does
// not grow with the number of chunks.
#include <omp.h>

#include "modules/families/titans_memory/titans_memory_test_cases.h"

namespace weft {
namespace {

using namespace testing;

Tensor slice(const Tensor& t, std::int64_t begin, std::int64_t end) {
  return t.defined() ? cast(t.rows(begin, end), t.dtype()) : t;
}

// Tokens [begin, end) and documents [first, last) of the inputs or gradients; weights stay.
TitansTensors slice(const TitansTensors& x, std::int64_t begin, std::int64_t end, std::int64_t first,
                    std::int64_t last) {
  TitansTensors y = x;
  for (std::size_t k = 0; k < kTitansTokenMembers; ++k) y.*kTitansMembers[k] = slice(x.*kTitansMembers[k], begin, end);
  y.state = slice(x.state, first, last);
  return y;
}
TitansData slice(const TitansData& data, std::int64_t begin, std::int64_t end, std::int64_t first, std::int64_t last) {
  return {slice(data.x, begin, end, first, last), slice(data.d_o, begin, end), slice(data.dfinal, first, last)};
}
// What belongs to tokens and documents, without the sum over all of them.
TitansResult slice(const TitansResult& r, std::int64_t begin, std::int64_t end, std::int64_t first, std::int64_t last) {
  TitansTensors d = slice(r.d, begin, end, first, last);
  d.w1 = d.w2 = {};
  return {slice(r.o, begin, end), slice(r.final_state, first, last), d};
}
TitansResult own(const TitansCase& c, const TitansResult& r) {
  return slice(r, 0, c.tokens(), 0, c.documents());
}

TitansData inputs(const TitansCase& c, std::uint64_t seed = 1) {
  return rounded(make_data(c, seed), DType::f32);
}
void disturb(const TitansCase& c, const TitansData& data, std::int64_t begin, std::int64_t end) {
  const TitansData other = inputs(c, 901);
  for (std::size_t k = 0; k < kTitansTokenMembers; ++k) {
    (data.x.*kTitansMembers[k]).rows(begin, end).copy_from((other.x.*kTitansMembers[k]).rows(begin, end));
  }
  data.d_o.rows(begin, end).copy_from(other.d_o.rows(begin, end));
}

class TitansInvariance : public ::testing::TestWithParam<std::int64_t> {
 protected:
  TitansCase with(std::vector<std::int32_t> lengths) const {
    return {.lengths = std::move(lengths), .m = GetParam(), .d_k = 12, .d_v = 20};
  }
};

TEST_P(TitansInvariance, TheFutureChangesNothing) {
  for (const std::int64_t t : {1, 15, 16, 40, 47}) {
    TitansCase c = with({50});
    c.final_gradient = false;
    const TitansData data = inputs(c), changed = inputs(c);
    disturb(c, changed, t, 50);
    const Tensor before = evaluate(c, data).o, after = evaluate(c, changed).o;
    EXPECT_TRUE(bitwise_equal(slice(after, 0, t), slice(before, 0, t))) << "t " << t;
    EXPECT_FALSE(bitwise_equal(slice(after, t, 50), slice(before, t, 50))) << "t " << t;

    data.d_o.rows(t, 50).fill_zero();
    const TitansResult r = evaluate(c, data);
    for (std::size_t k = 0; k < kTitansTokenMembers; ++k) {
      const Tensor late = slice(r.d.*kTitansMembers[k], t, 50);
      for (const float x : late.span<float>()) ASSERT_EQ(x, 0.0F) << kTitansNames[k] << " t " << t;
    }
  }
}

TEST_P(TitansInvariance, DocumentsNeitherSeeEachOtherNorMindBeingPacked) {
  const TitansCase c = with({20, 0, 33, 1, 64, 17});
  const TitansData data = inputs(c), changed = inputs(c);
  const TitansResult packed = evaluate(c, data);
  disturb(c, changed, 20, 53);
  const TitansResult other = evaluate(c, changed);
  expect_bitwise_equal(slice(other, 0, 20, 0, 2), slice(packed, 0, 20, 0, 2));
  expect_bitwise_equal(slice(other, 53, 135, 3, 6), slice(packed, 53, 135, 3, 6));
  std::int64_t begin = 0;
  for (std::int64_t n = 0; n < c.documents(); ++n) {
    const std::int64_t end = begin + c.lengths[static_cast<std::size_t>(n)];
    const TitansCase alone = with({static_cast<std::int32_t>(end - begin)});
    SCOPED_TRACE(alone.str());
    expect_bitwise_equal(own(alone, evaluate(alone, slice(data, begin, end, n, n + 1))),
                         slice(packed, begin, end, n, n + 1));
    begin = end;
  }
}

TEST_P(TitansInvariance, SplittingASequenceCarriesTheStateAndItsGradient) {
  for (const std::int32_t split : {0, 16, 48, 23, 37, 71}) {
    TitansCase c = with({71});
    c.phase = {0};
    const TitansData data = make_data(c);
    const TitansResult whole = evaluate(c, data);
    TitansCase head = c, tail = c;
    head.lengths = {split};
    tail.lengths = {71 - split};
    tail.phase = {split % 16};
    TitansData head_data = slice(data, 0, split, 0, 1), tail_data = slice(data, split, 71, 0, 1);
    tail_data.x.state = evaluate(head, head_data).final_state;
    const TitansResult last = evaluate(tail, tail_data);
    head_data.dfinal = last.d.state;
    const TitansResult first = evaluate(head, head_data);
    TitansResult expected_first = slice(whole, 0, split, 0, 1), expected_last = slice(whole, split, 71, 0, 1);
    expected_first.final_state = first.final_state;
    expected_last.d.state = last.d.state;
    SCOPED_TRACE(fmt::format("split at {}", split));
    if (split % 16 == 0) {
      expect_bitwise_equal(own(head, first), expected_first);
      expect_bitwise_equal(own(tail, last), expected_last);
    } else {
      expect_close(own(head, first), expected_first, kFp64Chunked);
      expect_close(own(tail, last), expected_last, kFp64Chunked);
    }
  }
}

TEST_P(TitansInvariance, ThreadsGiveTheSameBits) {
  const int threads = omp_get_max_threads();
  for (const TitansCase& c : {with({300}), with({5, 100, 0, 64, 7, 20})}) {
    const TitansData data = inputs(c);
    omp_set_num_threads(1);
    const TitansResult expected = evaluate(c, data);
    for (const int count : {2, 3}) {
      omp_set_num_threads(count);
      expect_bitwise_equal(evaluate(c, data), expected);
    }
    omp_set_num_threads(threads);
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
