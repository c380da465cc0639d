// What must not change a bit: later tokens, other documents, packing, splits at chunks, schedules, threads.
#include "modules/families/delta_rule/delta_rule_test_cases.h"
#include "tests/support/packed_invariance.h"

namespace weft {
namespace {

using namespace testing;

constexpr std::int64_t kChunk = 16;

class DeltaRuleInvariance : public ::testing::TestWithParam<DeltaDecay> {
 protected:
  // Grouped value heads, as many columns as take two blocks.
  DeltaCase with(std::vector<std::int32_t> lengths) const {
    return {
        .lengths = std::move(lengths), .decay = GetParam(), .H = 4, .d_k = 24, .d_v = 72, .plan = {.chunk = kChunk}};
  }
  static DeltaInputs inputs(const DeltaCase& c, std::uint64_t seed = 1) {
    return rounded(make_inputs(c, seed), DType::f32);
  }
};

TEST_P(DeltaRuleInvariance, LaterTokensDoNotReachEarlierOutputs) {
  const DeltaCase c = with({50});
  expect_later_tokens_do_not_reach_earlier_outputs(c, inputs(c), inputs(c, 901));
}

TEST_P(DeltaRuleInvariance, TokensAfterTheLastGradientGetNone) {
  DeltaCase c = with({50});
  c.final_gradient = false;
  expect_tokens_after_the_last_gradient_get_none(c, inputs(c));
}

TEST_P(DeltaRuleInvariance, DocumentsDoNotSeeEachOther) {
  const DeltaCase c = with({20, 33, 0, 17});
  expect_document_is_not_seen(c, inputs(c), inputs(c, 901), 1);
}

TEST_P(DeltaRuleInvariance, PackedDocumentsEqualEachAlone) {
  const DeltaCase c = with({20, 0, 33, 1, 64, 17});
  expect_packed_documents_equal_each_alone(c, inputs(c));
}

TEST_P(DeltaRuleInvariance, SplittingASequenceCarriesTheStateAndItsGradient) {
  for (const std::int64_t split : {0, 16, 48, 23, 71}) {
    DeltaCase c = with({71}), tail = c;
    c.initial_state = split != 16;  // also from zero
    expect_split_carries_the_state(c, c, tail, inputs(c), split, kChunk, kFp32);
  }
}

TEST_P(DeltaRuleInvariance, SchedulesAndThreadsGiveTheSameBits) {
  std::vector<DeltaCase> cases{with({700}), with({5, 300, 0, 64})};
  cases.push_back(with({256}));  // a single chunk of a single head: products outside any threaded loop
  cases.back().H = cases.back().H_K = 1;
  cases.back().d_k = 128;
  cases.back().plan.chunk = 256;
  for (const DeltaCase& c : cases) expect_schedules_and_threads_give_the_same_bits(c, inputs(c));
}

TEST_P(DeltaRuleInvariance, DecodingTokenByTokenEqualsOneRun) {
  const DeltaCase c = with({40, 40, 40});
  expect_decoding_equals_one_run(c, [&](Tape& tape, const DeltaInputs& in, const Tensor& state) {
    return delta_rule_decode(tape, in.q, in.k, in.v, in.g, in.beta, state, c.scale);
  });
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
