// What must not change a bit: later tokens, other documents, packing, splits at chunks, schedules, threads.
#include <omp.h>

#include "modules/families/delta_rule/delta_rule_test_cases.h"

namespace weft {
namespace {

using namespace testing;

constexpr std::int64_t kChunk = 16;

// Rows [begin, end) of the first dimension, on their own.
Tensor slice(const Tensor& t, std::int64_t begin, std::int64_t end) {
  return t.defined() ? cast(t.rows(begin, end), t.dtype()) : t;
}

// The inputs of tokens [begin, end) and documents [first, last).
DeltaInputs slice(const DeltaInputs& in, std::int64_t begin, std::int64_t end, std::int64_t first, std::int64_t last) {
  return {.q = slice(in.q, begin, end),
          .k = slice(in.k, begin, end),
          .v = slice(in.v, begin, end),
          .g = slice(in.g, begin, end),
          .beta = slice(in.beta, begin, end),
          .s0 = slice(in.s0, first, last),
          .d_o = slice(in.d_o, begin, end),
          .dst = slice(in.dst, first, last)};
}

DeltaResult slice(const DeltaResult& r, std::int64_t begin, std::int64_t end, std::int64_t first, std::int64_t last) {
  return {.o = slice(r.o, begin, end),
          .st = slice(r.st, first, last),
          .dq = slice(r.dq, begin, end),
          .dk = slice(r.dk, begin, end),
          .dv = slice(r.dv, begin, end),
          .dg = slice(r.dg, begin, end),
          .dbeta = slice(r.dbeta, begin, end),
          .ds0 = slice(r.ds0, first, last)};
}

// Other values for tokens [begin, end) of every input.
void disturb(const DeltaCase& c, const DeltaInputs& in, std::int64_t begin, std::int64_t end) {
  const DeltaInputs other = make_inputs(c, 901);
  const auto overwrite = [&](const Tensor& t, const Tensor& by) {
    if (t.defined()) t.rows(begin, end).copy_from(cast(by.rows(begin, end), t.dtype()));
  };
  overwrite(in.q, other.q);
  overwrite(in.k, other.k);
  overwrite(in.v, other.v);
  overwrite(in.g, other.g);
  overwrite(in.beta, other.beta);
  overwrite(in.d_o, other.d_o);
}

class DeltaRuleInvariance : public ::testing::TestWithParam<DeltaDecay> {
 protected:
  // Grouped value heads, as many columns as take two blocks.
  DeltaCase with(std::vector<std::int32_t> lengths) const {
    return {
        .lengths = std::move(lengths), .decay = GetParam(), .H = 4, .d_k = 24, .d_v = 72, .plan = {.chunk = kChunk}};
  }
  static DeltaInputs inputs(const DeltaCase& c) { return rounded(make_inputs(c), DType::f32); }
};

TEST_P(DeltaRuleInvariance, LaterTokensDoNotReachEarlierOutputs) {
  for (const std::int64_t t : {1, 15, 16, 40, 47}) {
    const DeltaCase c = with({50});
    const Tensor before = evaluate(c, inputs(c)).o;
    const DeltaInputs changed = inputs(c);
    disturb(c, changed, t, 50);
    const Tensor after = evaluate(c, changed).o;
    EXPECT_TRUE(bitwise_equal(slice(after, 0, t), slice(before, 0, t))) << "t " << t;
    EXPECT_FALSE(bitwise_equal(slice(after, t, 50), slice(before, t, 50))) << "t " << t;
  }
}

TEST_P(DeltaRuleInvariance, TokensAfterTheLastGradientGetNone) {
  for (const std::int64_t t : {1, 15, 16, 40, 47}) {
    DeltaCase c = with({50});
    c.final_gradient = false;
    const DeltaInputs in = inputs(c);
    in.d_o.rows(t, 50).fill_zero();
    const DeltaResult r = evaluate(c, in);
    for (const Tensor* gradient : {&r.dq, &r.dk, &r.dv, &r.dg, &r.dbeta}) {
      if (!gradient->defined()) continue;
      const Tensor late = slice(*gradient, t, 50);
      for (const float x : late.span<float>()) ASSERT_EQ(x, 0.0f) << "t " << t;
    }
  }
}

TEST_P(DeltaRuleInvariance, DocumentsDoNotSeeEachOther) {
  const DeltaCase c = with({20, 33, 0, 17});
  const DeltaResult before = evaluate(c, inputs(c));
  const DeltaInputs changed = inputs(c);
  disturb(c, changed, 20, 53);
  const DeltaResult after = evaluate(c, changed);
  expect_bitwise_equal(slice(after, 0, 20, 0, 1), slice(before, 0, 20, 0, 1));
  expect_bitwise_equal(slice(after, 53, 70, 2, 4), slice(before, 53, 70, 2, 4));
}

TEST_P(DeltaRuleInvariance, PackedDocumentsEqualEachAlone) {
  const DeltaCase c = with({20, 0, 33, 1, 64, 17});
  const DeltaInputs in = inputs(c);
  const DeltaResult packed = evaluate(c, in);
  std::int64_t begin = 0;
  for (std::int64_t n = 0; n < c.documents(); ++n) {
    const std::int64_t end = begin + c.lengths[static_cast<std::size_t>(n)];
    DeltaCase alone = c;
    alone.lengths = {static_cast<std::int32_t>(end - begin)};
    SCOPED_TRACE(alone.str());
    expect_bitwise_equal(slice(packed, begin, end, n, n + 1), evaluate(alone, slice(in, begin, end, n, n + 1)));
    begin = end;
  }
}

TEST_P(DeltaRuleInvariance, SplittingASequenceCarriesTheStateAndItsGradient) {
  for (const std::int64_t split : {0, 16, 48, 23, 71}) {
    DeltaCase c = with({71});
    c.initial_state = split != 16;  // also from zero
    const DeltaInputs in = inputs(c);
    const DeltaResult whole = evaluate(c, in);
    DeltaCase head = c, tail = c;
    head.lengths = {static_cast<std::int32_t>(split)};
    tail.lengths = {static_cast<std::int32_t>(71 - split)};
    tail.initial_state = head.final_gradient = true;
    DeltaInputs head_in = slice(in, 0, split, 0, 1), tail_in = slice(in, split, 71, 0, 1);
    tail_in.s0 = evaluate(head, head_in).st;
    const DeltaResult last = evaluate(tail, tail_in);
    head_in.dst = last.ds0;
    const DeltaResult first = evaluate(head, head_in);
    DeltaResult expected_first = slice(whole, 0, split, 0, 1), expected_last = slice(whole, split, 71, 0, 1);
    expected_first.st = first.st;
    expected_last.ds0 = last.ds0;
    SCOPED_TRACE(fmt::format("split at {}", split));
    if (split % kChunk == 0) {
      expect_bitwise_equal(first, expected_first);
      expect_bitwise_equal(last, expected_last);
    } else {
      expect_close(first, expected_first, kFp32);
      expect_close(last, expected_last, kFp32);
    }
  }
}

TEST_P(DeltaRuleInvariance, SchedulesAndThreadsGiveTheSameBits) {
  const int threads = omp_get_max_threads();
  std::vector<DeltaCase> cases{with({700}), with({5, 300, 0, 64})};
  cases.push_back(with({256}));  // a single chunk of a single head: products outside any threaded loop
  cases.back().H = cases.back().H_K = 1;
  cases.back().d_k = 128;
  cases.back().plan.chunk = 256;
  for (DeltaCase& c : cases) {
    const DeltaInputs in = inputs(c);
    c.plan.schedule = DeltaSchedule::fused;
    omp_set_num_threads(1);
    const DeltaResult expected = evaluate(c, in);
    for (const DeltaSchedule schedule : {DeltaSchedule::automatic, DeltaSchedule::fused, DeltaSchedule::two_level}) {
      for (const int count : {1, 2, 3}) {
        SCOPED_TRACE(fmt::format("{} schedule {} threads {}", c.str(), static_cast<int>(schedule), count));
        c.plan.schedule = schedule;
        omp_set_num_threads(count);
        expect_bitwise_equal(evaluate(c, in), expected);
      }
    }
    omp_set_num_threads(threads);
  }
}

TEST_P(DeltaRuleInvariance, DecodingTokenByTokenEqualsOneRun) {
  for (const DType dtype : {DType::f64, DType::f32}) {
    const std::int32_t N = 3, length = 40;
    const DeltaCase c = with(std::vector<std::int32_t>(N, length));
    const DeltaInputs in = rounded(make_inputs(c), dtype);
    const DeltaResult reference = evaluate_reference(c, rounded(in, DType::f64));
    Tape tape(heap_allocator(Hygiene::hostile), Tape::Mode::inference);
    const Tensor state = cast(in.s0, dtype);
    const Tensor o = Tensor::empty(in.v.shape(), dtype);
    for (std::int32_t t = 0; t < length; ++t) {
      // Token t of every sequence: rows t, length + t, ...
      const auto gather = [&](const Tensor& from) {
        if (!from.defined()) return Tensor{};
        Shape shape = from.shape();
        shape.set(0, N);
        const Tensor to = Tensor::empty(shape, dtype);
        for (std::int32_t n = 0; n < N; ++n) to.rows(n, n + 1).copy_from(from.rows(n * length + t, n * length + t + 1));
        return to;
      };
      const Tensor step = delta_rule_decode(tape, gather(in.q), gather(in.k), gather(in.v), gather(in.g),
                                            gather(in.beta), state, c.scale);
      for (std::int32_t n = 0; n < N; ++n) {
        o.rows(n * length + t, n * length + t + 1).copy_from(step.rows(n, n + 1));
      }
    }
    const Tolerance& tolerance = dtype == DType::f64 ? kFp64Chunked : kFp32;
    EXPECT_TRUE(close(o, reference.o, tolerance.forward, tolerance.max));
    EXPECT_TRUE(close(state, reference.st, tolerance.forward, tolerance.max));
  }
}

std::string decay_name(const ::testing::TestParamInfo<DeltaDecay>& info) {
  return std::array{"None", "Scalar", "Channel"}[static_cast<std::size_t>(info.param)];
}
INSTANTIATE_TEST_SUITE_P(Decays, DeltaRuleInvariance, ::testing::ValuesIn(kAllDecays), decay_name);

// Beyond the inputs, backward keeps one state for each chunk and head, whatever the length.
TEST(DeltaRuleMemory, GrowsWithEntryStatesOnly) {
  const auto peak = [](std::int32_t tokens) {
    const DeltaCase c{.lengths = {tokens}, .d_k = 8, .d_v = 8, .initial_state = false, .final_gradient = false};
    const DeltaInputs in = rounded(make_inputs(c), DType::f32);
    const auto memory = heap_allocator();
    Tape tape(memory);
    const auto out = delta_rule(tape, tape.leaf(in.q), tape.leaf(in.k), tape.leaf(in.v), tape.leaf(in.g),
                                tape.leaf(in.beta), {}, documents_of(c), 1.0);
    tape.backward(out.o, in.d_o);
    return static_cast<std::int64_t>(memory->stats().peak_bytes);
  };
  const std::int64_t H = 2, d = 8, length = 8192, state = H * d * d * 4;
  const std::int64_t per_token = 5 * H * d * 4 + H * 4;  // the output and the gradients of q, k, v, g and beta
  const std::int64_t chunks = length / delta_rule_chunk();
  EXPECT_LE(peak(2 * length) - peak(length), length * per_token + chunks * state + 4096);
}

}  // namespace
}  // namespace weft
