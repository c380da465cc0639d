// The delta rule on a GPU: values and gradients against the oracle on the same rounded inputs, and what must not change
// a bit. Widths of 64 and 128 in bf16 take the kernels for tensor cores, others the general ones.
#include "autograd/transfer.h"
#include "modules/families/delta_rule/delta_rule_test_cases.h"
#include "tests/support/gpu.h"
#include "tests/support/packed_invariance.h"

namespace weft {
namespace {

using namespace testing;

// Activations rounded to `dtype`; log decays, betas and states to what goes with it.
DeltaInputs stored(DeltaInputs in, DType dtype) {
  in = rounded(in, accumulator_dtype(dtype));
  for (Tensor* t : {&in.q, &in.k, &in.v, &in.d_o}) *t = cast(*t, dtype);
  return in;
}

void expect_the_recurrence_on_gpu(const DeltaCase& c, const DeltaInputs& in,
                                  std::initializer_list<DType> dtypes = {DType::f32, DType::bf16}) {
  for (const DType dtype : dtypes) {
    SCOPED_TRACE(fmt::format("{} {}", name_of(dtype), c.str()));
    const DeltaInputs given = stored(in, dtype);
    const DeltaResult reference = evaluate_reference(c, rounded(given, DType::f64));
    const OnGpu gpu;
    const DeltaResult got = evaluate(c, given);
    expect_close(got, reference, dtype == DType::f32 ? kFp32 : kBf16Recurrence);
    if (sanitize() == Sanitize::no) expect_bitwise_equal(evaluate(c, given), got);
  }
}

const std::vector<std::int32_t> kLengths{0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 1000};

class DeltaRuleDecaysGpu : public ::testing::TestWithParam<DeltaDecay> {
 protected:
  void SetUp() override { WEFT_NEEDS_GPU(); }
};

TEST_P(DeltaRuleDecaysGpu, ChunkedEqualsTheRecurrence) {
  const DeltaDecay decay = GetParam();
  std::vector<DeltaCase> cases;
  for (const std::int32_t n : kLengths) cases.push_back({.lengths = {n}, .decay = decay});
  for (const bool s0 : {false, true}) {
    for (const bool dst : {false, true}) {
      cases.push_back({.lengths = kLengths, .decay = decay, .initial_state = s0, .final_gradient = dst});
    }
  }
  for (const std::int64_t chunk : {1, 16, 50}) {
    cases.push_back({.lengths = {300, 0, 33}, .decay = decay, .H = 1, .H_K = 1, .d_k = 8, .d_v = 20});
    cases.back().plan.chunk = chunk;
  }
  cases.push_back({.lengths = {200}, .decay = decay, .H = 3, .H_K = 3, .d_k = 64, .d_v = 96, .scale = 0.125});
  cases.push_back({.lengths = {150, 70}, .decay = decay, .H = 6, .H_K = 2, .d_k = 12, .d_v = 9, .largest_beta = 2.0});
  cases.push_back({.lengths = {200}, .decay = decay, .d_k = 1, .d_v = 1});
  cases.push_back({.lengths = {100, 90}, .decay = decay, .H = 2, .H_K = 1, .d_k = 256, .d_v = 256});
  for (const DeltaCase& c : cases) expect_the_recurrence_on_gpu(c, make_inputs(c));
}

// Both kinds of kernels with few chunks: what the sanitizer goes through.
TEST_P(DeltaRuleDecaysGpu, AFewChunks) {
  DeltaCase wide{.lengths = {140, 3}, .decay = GetParam(), .H = 2, .H_K = 1, .d_k = 128, .d_v = 128};
  wide.scale = 0.088;
  const DeltaCase narrow{.lengths = {20, 3}, .decay = GetParam(), .H = 1, .H_K = 1, .d_k = 24, .plan = {.chunk = 16}};
  expect_the_recurrence_on_gpu(wide, make_inputs(wide), {DType::bf16});
  expect_the_recurrence_on_gpu(narrow, make_inputs(narrow));
}

// The widths of the kernels for tensor cores.
TEST_P(DeltaRuleDecaysGpu, WidthsOfModelsEqualTheRecurrence) {
  const DeltaDecay decay = GetParam();
  std::vector<DeltaCase> cases;
  for (const std::int32_t n : kLengths) cases.push_back({.lengths = {n}, .decay = decay, .d_k = 128, .d_v = 128});
  cases.push_back({.lengths = kLengths, .decay = decay, .H = 2, .H_K = 1, .d_k = 128, .d_v = 128, .largest_beta = 2.0});
  cases.push_back(
      {.lengths = kLengths, .decay = decay, .d_k = 128, .d_v = 128, .initial_state = false, .final_gradient = false});
  for (DeltaCase& c : cases) {
    c.scale = 0.088;
    expect_the_recurrence_on_gpu(c, make_inputs(c), {DType::bf16});
  }
}

TEST_P(DeltaRuleDecaysGpu, HoldsItsToleranceForSlowFastAndMixedGates) {
  const DeltaDecay decay = GetParam();
  if (decay == DeltaDecay::none) return;
  for (const std::int64_t d : {16, 128}) {
    DeltaCase c{.lengths = {300}, .decay = decay, .H = 1, .H_K = 1, .d_k = d, .d_v = d};
    for (const double gate : {1e-4, 0.02, 2.5, 20.0, 400.0}) {
      c.gate = gate;
      c.initial_state = gate < 100.0;
      SCOPED_TRACE(fmt::format("gate {}", gate));
      expect_the_recurrence_on_gpu(c, make_inputs(c));
    }
    c.gate = 0.05;
    c.initial_state = true;
    const auto check = [&](const char* name, auto&& log_decay) {
      SCOPED_TRACE(name);
      const DeltaInputs in = make_inputs(c);
      for (std::int64_t i = 0; i < in.g.numel(); ++i) log_decay(in.g.data<double>()[i], i);
      expect_the_recurrence_on_gpu(c, in);
    };
    check("at the bound of the bounded gate", [](double& g, std::int64_t) { g = -5.0; });
    for (const double jump : {-3000.0, -1e30}) {
      check("with jumps", [&](double& g, std::int64_t i) { g = i % 97 == 0 ? jump : g; });
    }
    const Tensor z = normal({c.tokens() * c.H * c.d_k}, 77);
    check("with heavy tails, from 1e-5 to 1e5",
          [&](double& g, std::int64_t i) { g = -std::exp(3.0 * z.data<double>()[i]); });
  }
}

// In f32 with narrow heads and short chunks, and in bf16 with those of the kernels for tensor cores.
struct InvarianceCase {
  DType dtype;
  DeltaCase with;
};
std::vector<InvarianceCase> invariance_cases(DeltaDecay decay) {
  return {{DType::f32, {.lengths = {}, .decay = decay, .H = 4, .d_k = 24, .d_v = 72, .plan = {.chunk = 16}}},
          {DType::bf16, {.lengths = {}, .decay = decay, .H = 4, .d_k = 128, .d_v = 128}}};
}
DeltaCase with(DeltaCase c, std::vector<std::int32_t> lengths) {
  c.lengths = std::move(lengths);
  return c;
}

TEST_P(DeltaRuleDecaysGpu, LaterTokensDoNotReachEarlierOutputs) {
  const OnGpu gpu;
  for (const InvarianceCase& i : invariance_cases(GetParam())) {
    const DeltaCase c = with(i.with, {50});
    expect_later_tokens_do_not_reach_earlier_outputs(c, stored(make_inputs(c), i.dtype),
                                                     stored(make_inputs(c, 901), i.dtype));
  }
}

TEST_P(DeltaRuleDecaysGpu, TokensAfterTheLastGradientGetNone) {
  const OnGpu gpu;
  for (const InvarianceCase& i : invariance_cases(GetParam())) {
    DeltaCase c = with(i.with, {50});
    c.final_gradient = false;
    expect_tokens_after_the_last_gradient_get_none(c, stored(make_inputs(c), i.dtype));
  }
}

TEST_P(DeltaRuleDecaysGpu, DocumentsDoNotSeeEachOther) {
  const OnGpu gpu;
  for (const InvarianceCase& i : invariance_cases(GetParam())) {
    const DeltaCase c = with(i.with, {20, 33, 0, 17});
    expect_document_is_not_seen(c, stored(make_inputs(c), i.dtype), stored(make_inputs(c, 901), i.dtype), 1);
  }
}

TEST_P(DeltaRuleDecaysGpu, PackedDocumentsEqualEachAlone) {
  const OnGpu gpu;
  for (const InvarianceCase& i : invariance_cases(GetParam())) {
    const DeltaCase c = with(i.with, {20, 0, 33, 1, 64, 170});
    expect_packed_documents_equal_each_alone(c, stored(make_inputs(c), i.dtype));
  }
}

TEST_P(DeltaRuleDecaysGpu, SplittingASequenceCarriesTheStateAndItsGradient) {
  const OnGpu gpu;
  for (const InvarianceCase& i : invariance_cases(GetParam())) {
    const std::int64_t chunk = i.with.plan.chunk == 0 ? delta_rule_chunk() : i.with.plan.chunk;
    for (const std::int64_t split : {std::int64_t{0}, chunk, 3 * chunk, chunk + 7}) {
      DeltaCase c = with(i.with, {static_cast<std::int32_t>(4 * chunk + 7)}), tail = c;
      c.initial_state = split != chunk;  // also from zero
      expect_split_carries_the_state(c, c, tail, stored(make_inputs(c), i.dtype), split, chunk,
                                     i.dtype == DType::f32 ? kFp32 : kBf16Recurrence);
    }
  }
}

TEST_P(DeltaRuleDecaysGpu, DecodingTokenByTokenEqualsOneRun) {
  for (const InvarianceCase& i : invariance_cases(GetParam())) {
    const DeltaCase c = with(i.with, {40, 40, 40});
    const DeltaInputs in = stored(make_inputs(c), i.dtype);
    const DeltaResult reference = evaluate_reference(c, rounded(in, DType::f64));
    const std::int64_t N = c.documents(), length = c.tokens() / N;
    Tape tape(gpu_memory(), Tape::Mode::inference, gpu_stream());
    const Tensor state = tape.here(in.s0);
    const Tensor o = Tensor::empty(reference.o.shape(), i.dtype);
    for (std::int64_t t = 0; t < length; ++t) {
      DeltaInputs token = in;
      keep_token(token.fields(), t, N);
      const Tensor out = to_host(delta_rule_decode(tape, tape.here(token.q), tape.here(token.k), tape.here(token.v),
                                                   tape.here(token.g), tape.here(token.beta), state, c.scale),
                                 gpu_stream());
      for (std::int64_t n = 0; n < N; ++n) o.rows(n * length + t, n * length + t + 1).copy_from(out.rows(n, n + 1));
    }
    const Tolerance& tolerance = i.dtype == DType::f32 ? kFp32 : kBf16Recurrence;
    EXPECT_TRUE(close(o, reference.o, tolerance.forward, tolerance.max));
    EXPECT_TRUE(close(to_host(state, gpu_stream()), reference.st, tolerance.forward, tolerance.max));
  }
}

std::string decay_name(const ::testing::TestParamInfo<DeltaDecay>& info) {
  return std::array{"None", "Scalar", "Channel"}[static_cast<std::size_t>(info.param)];
}
INSTANTIATE_TEST_SUITE_P(Decays, DeltaRuleDecaysGpu, ::testing::ValuesIn(kAllDecays), decay_name);

}  // namespace
}  // namespace weft
