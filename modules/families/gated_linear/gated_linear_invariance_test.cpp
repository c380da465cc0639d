// What must not change a bit: later tokens, other documents, packing, splits at chunks, schedules, threads.
#include "modules/families/gated_linear/gated_linear_test_cases.h"
#include "tests/support/packed_invariance.h"

namespace weft {
namespace {

using namespace testing;

constexpr std::int64_t kChunk = 16;

class GatedLinearInvariance : public ::testing::TestWithParam<DecayKind> {
 protected:
  RecurrenceCase with(std::vector<std::int32_t> lengths) const {
    return {.lengths = std::move(lengths), .kind = GetParam(), .d_k = 24, .d_v = 12, .plan = {.chunk = kChunk}};
  }
  static RecurrenceInputs inputs(const RecurrenceCase& c, std::uint64_t seed = 1) {
    return rounded(make_inputs(c, seed), DType::f32);
  }
};

TEST_P(GatedLinearInvariance, LaterTokensDoNotReachEarlierOutputs) {
  const RecurrenceCase c = with({50});
  expect_later_tokens_do_not_reach_earlier_outputs(c, inputs(c), inputs(c, 901));
}

TEST_P(GatedLinearInvariance, TokensAfterTheLastGradientGetNone) {
  RecurrenceCase c = with({50});
  c.final_gradient = false;
  expect_tokens_after_the_last_gradient_get_none(c, inputs(c));
}

TEST_P(GatedLinearInvariance, DocumentsDoNotSeeEachOther) {
  const RecurrenceCase c = with({20, 33, 0, 17});
  expect_document_is_not_seen(c, inputs(c), inputs(c, 901), 1);
}

TEST_P(GatedLinearInvariance, PackedDocumentsEqualEachAlone) {
  const RecurrenceCase c = with({20, 0, 33, 1, 64, 17});
  expect_packed_documents_equal_each_alone(c, inputs(c));
}

TEST_P(GatedLinearInvariance, SplittingASequenceCarriesTheStateAndItsGradient) {
  for (const std::int64_t split : {0, 16, 48, 23, 71}) {
    RecurrenceCase c = with({71}), tail = c;
    c.initial_state = split != 16;  // also from zero
    expect_split_carries_the_state(c, c, tail, inputs(c), split, kChunk, kFp32);
  }
}

TEST_P(GatedLinearInvariance, SchedulesAndThreadsGiveTheSameBits) {
  std::vector<RecurrenceCase> cases{with({1000}), with({5, 300, 0, 64})};
  cases.push_back(with({256}));  // a single chunk of a single head: products outside any threaded loop
  cases.back().H = 1;
  cases.back().d_k = cases.back().d_v = 128;
  cases.back().plan.chunk = 256;
  for (const RecurrenceCase& c : cases) expect_schedules_and_threads_give_the_same_bits(c, inputs(c));
}

TEST_P(GatedLinearInvariance, DecodingTokenByTokenEqualsOneRun) {
  const RecurrenceCase c = with({70, 70, 70});
  expect_decoding_equals_one_run(c, [&](Tape& tape, const RecurrenceInputs& in, const Tensor& state) {
    return gated_linear_decode(tape, in.q, in.k, in.v, in.g, state, c.scale);
  });
}

std::string kind_name(const ::testing::TestParamInfo<DecayKind>& info) {
  return std::array{"Constant", "Scalar", "Vector"}[static_cast<std::size_t>(info.param)];
}
INSTANTIATE_TEST_SUITE_P(Kinds, GatedLinearInvariance, ::testing::ValuesIn(kAllKinds), kind_name);

// Beyond the inputs, backward keeps one state for each chunk and head, whatever the length.
TEST(GatedLinearMemory, GrowsWithEntryStatesOnly) {
  const auto peak = [](std::int32_t tokens) {
    const RecurrenceCase c{.lengths = {tokens},
                           .kind = DecayKind::vector,
                           .H = 2,
                           .d_k = 8,
                           .d_v = 8,
                           .initial_state = false,
                           .final_gradient = false};
    const RecurrenceInputs in = rounded(make_inputs(c), DType::f32);
    const auto memory = heap_allocator();
    Tape tape(memory);
    const auto out = gated_linear(tape, tape.leaf(in.q), tape.leaf(in.k), tape.leaf(in.v), tape.leaf(in.g), {},
                                  documents_of(c), 1.0);
    tape.backward(out.o, in.d_o);
    return static_cast<std::int64_t>(memory->stats().peak_bytes);
  };
  const std::int64_t H = 2, d = 8, length = 8192, state = H * d * d * 4;
  const std::int64_t per_token = 4 * H * d * 4 + H * d * 4;  // four gradients and the output
  const std::int64_t chunks = length / gated_linear_chunk(DecayKind::vector);
  EXPECT_LE(peak(2 * length) - peak(length), length * per_token + chunks * state + 4096);
}

}  // namespace
}  // namespace weft
