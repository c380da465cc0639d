// What must not change a bit: later tokens, other documents, packing, splits at batches, threads; and memory that does
// not grow with the number of batches.
#include <omp.h>

#include "modules/families/ttt/ttt_memory_test_cases.h"

namespace weft {
namespace {

using namespace testing;

Tensor slice(const Tensor& t, std::int64_t begin, std::int64_t end) {
  return t.defined() ? cast(t.rows(begin, end), t.dtype()) : t;
}

// Tokens [begin, end) and documents [first, last) of the inputs or gradients; parameters stay.
TttTensors slice(const TttTensors& x, std::int64_t begin, std::int64_t end, std::int64_t first, std::int64_t last) {
  TttTensors y = x;
  for (const auto member : {&TttTensors::q, &TttTensors::k, &TttTensors::v, &TttTensors::rate}) {
    y.*member = slice(x.*member, begin, end);
  }
  y.state = slice(x.state, first, last);
  return y;
}
TttData slice(const TttData& data, std::int64_t begin, std::int64_t end, std::int64_t first, std::int64_t last) {
  return {slice(data.x, begin, end, first, last), slice(data.d_o, begin, end), slice(data.dfinal, first, last)};
}
// What belongs to tokens and documents, without the sums over all of them.
TttResult slice(const TttResult& r, std::int64_t begin, std::int64_t end, std::int64_t first, std::int64_t last) {
  TttTensors d = slice(r.d, begin, end, first, last);
  d.offset = d.gamma = d.beta = d.w1 = d.b1 = d.w2 = d.b2 = {};
  return {slice(r.o, begin, end), slice(r.final_state, first, last), d};
}
TttResult own(const TttCase& c, const TttResult& r) {
  return slice(r, 0, c.tokens(), 0, c.documents());
}

class TttInvariance : public ::testing::TestWithParam<std::int64_t> {
 protected:
  TttCase with(std::vector<std::int32_t> lengths) const {
    return {.lengths = std::move(lengths), .m = GetParam(), .d = 12};
  }
  static TttData inputs(const TttCase& c, std::uint64_t seed = 1) { return rounded(make_data(c, seed), DType::f32); }
  static void disturb(const TttCase& c, const TttData& data, std::int64_t begin, std::int64_t end) {
    const TttData other = inputs(c, 901);
    for (const auto member : {&TttTensors::q, &TttTensors::k, &TttTensors::v, &TttTensors::rate}) {
      (data.x.*member).rows(begin, end).copy_from((other.x.*member).rows(begin, end));
    }
    data.d_o.rows(begin, end).copy_from(other.d_o.rows(begin, end));
  }
};

TEST_P(TttInvariance, TheFutureChangesNothing) {
  for (const std::int64_t t : {1, 15, 16, 40, 47}) {
    TttCase c = with({50});
    c.final_gradient = false;
    const TttData data = inputs(c), changed = inputs(c);
    disturb(c, changed, t, 50);
    const Tensor before = evaluate(c, data).o, after = evaluate(c, changed).o;
    EXPECT_TRUE(bitwise_equal(slice(after, 0, t), slice(before, 0, t))) << "t " << t;
    EXPECT_FALSE(bitwise_equal(slice(after, t, 50), slice(before, t, 50))) << "t " << t;

    data.d_o.rows(t, 50).fill_zero();
    const TttResult r = evaluate(c, data);
    for (const Tensor* gradient : {&r.d.q, &r.d.k, &r.d.v, &r.d.rate}) {
      const Tensor late = slice(*gradient, t, 50);
      for (const float x : late.span<float>()) ASSERT_EQ(x, 0.0F) << "t " << t;
    }
  }
}

TEST_P(TttInvariance, DocumentsNeitherSeeEachOtherNorMindBeingPacked) {
  const TttCase c = with({20, 0, 33, 1, 64, 17});
  const TttData data = inputs(c), changed = inputs(c);
  const TttResult packed = evaluate(c, data);
  disturb(c, changed, 20, 53);
  const TttResult other = evaluate(c, changed);
  expect_bitwise_equal(slice(other, 0, 20, 0, 2), slice(packed, 0, 20, 0, 2));
  expect_bitwise_equal(slice(other, 53, 135, 3, 6), slice(packed, 53, 135, 3, 6));
  std::int64_t begin = 0;
  for (std::int64_t n = 0; n < c.documents(); ++n) {
    const std::int64_t end = begin + c.lengths[static_cast<std::size_t>(n)];
    const TttCase alone = with({static_cast<std::int32_t>(end - begin)});
    SCOPED_TRACE(alone.str());
    expect_bitwise_equal(own(alone, evaluate(alone, slice(data, begin, end, n, n + 1))),
                         slice(packed, begin, end, n, n + 1));
    begin = end;
  }
}

TEST_P(TttInvariance, SplittingASequenceCarriesTheStateAndItsGradient) {
  for (const std::int32_t split : {0, 16, 48, 23, 37, 71}) {
    TttCase c = with({71});
    c.phase = {0};
    const TttData data = make_data(c);
    const TttResult whole = evaluate(c, data);
    TttCase head = c, tail = c;
    head.lengths = {split};
    tail.lengths = {71 - split};
    tail.phase = {split % 16};
    TttData head_data = slice(data, 0, split, 0, 1), tail_data = slice(data, split, 71, 0, 1);
    tail_data.x.state = evaluate(head, head_data).final_state;
    const TttResult last = evaluate(tail, tail_data);
    head_data.dfinal = last.d.state;
    const TttResult first = evaluate(head, head_data);
    TttResult expected_first = slice(whole, 0, split, 0, 1), expected_last = slice(whole, split, 71, 0, 1);
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
    for (const auto member : {&TttTensors::gamma, &TttTensors::beta, &TttTensors::offset}) {
      const Tensor sum = cast(first.d.*member, DType::f64);
      for (std::int64_t i = 0; i < sum.numel(); ++i) sum.data<double>()[i] += (last.d.*member).data<double>()[i];
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
  const int threads = omp_get_max_threads();
  for (const TttCase& c : {with({300}), with({5, 100, 0, 64, 7, 20})}) {
    const TttData data = inputs(c);
    omp_set_num_threads(1);
    const TttResult expected = evaluate(c, data);
    for (const int count : {2, 3}) {
      omp_set_num_threads(count);
      expect_bitwise_equal(evaluate(c, data), expected);
    }
    omp_set_num_threads(threads);
  }
}

INSTANTIATE_TEST_SUITE_P(Hidden, TttInvariance, ::testing::Values(0, 20), ::testing::PrintToStringParamName());

// Backward keeps about twice the root of the number of batches of states, and the inputs.
TEST(TttMemorySize, GrowsWithTheRootOfTheBatches) {
  const auto peak = [](std::int32_t tokens) {
    const TttCase c{.lengths = {tokens}, .m = 64, .H = 1, .d = 8, .b = 4, .final_gradient = false};
    const TttData data = rounded(make_data(c), DType::f32);
    const auto memory = heap_allocator();
    Tape tape(memory);
    std::vector<Var> x;
    for (const auto member : kTttMembers) {
      x.push_back((data.x.*member).defined() ? tape.leaf(data.x.*member) : Var{});
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
