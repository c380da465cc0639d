// The fast-weight memory on a GPU: values and gradients against the oracle on the same rounded inputs, and what must
// not change a bit.
#include "modules/families/fast_weights/fast_weights_test_cases.h"
#include "tests/support/packed_invariance.h"

namespace weft {
namespace {

using namespace testing;

// What is stored beside activations of `dtype`: rates and states in the accumulator type.
MemoryTensors stored(MemoryTensors t, DType dtype) {
  t = rounded(t, accumulator_dtype(dtype));
  for (Tensor* x : {&t.q, &t.k, &t.v, &t.w0, &t.w1, &t.w2, &t.dout}) *x = cast(*x, dtype);
  return t;
}

Tolerance tolerance(DType dtype) {
  return dtype == DType::f32 ? kFp32 : kBf16TestTimeTraining;
}

void expect_the_definition_on_gpu(const MemoryCase& c,
                                  std::initializer_list<DType> dtypes = {DType::f32, DType::bf16}) {
  for (const DType dtype : dtypes) {
    SCOPED_TRACE(fmt::format("{} {}", name_of(dtype), c.str()));
    const MemoryTensors given = stored(make_tensors(c), dtype);
    const MemoryResult reference = evaluate_reference(c, rounded(given, DType::f64));
    const OnGpu gpu;
    const MemoryResult got = evaluate(c, given);
    expect_close(got, reference, tolerance(dtype));
    expect_bitwise_equal(evaluate(c, given), got);
  }
}

TEST(FastWeightsGpu, EqualTheDefinition) {
  WEFT_NEEDS_GPU();
  const std::vector<std::int32_t> lengths{0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129};
  for (const FastWeightConfig& config : all_configs(16)) {
    if (config.orthogonalise) continue;
    for (const bool initial : {false, true}) {
      expect_the_definition_on_gpu(
          {.lengths = lengths, .config = config, .H = 1, .initial_state = initial, .final_gradient = !initial});
    }
  }
}

// In f32 this is SinglePrecisionIsAsGoodAsItsInputsWhenOrthogonalised.
TEST(FastWeightsGpu, EqualTheDefinitionOrthogonalised) {
  WEFT_NEEDS_GPU();
  for (const FastWeightConfig& config : all_configs(32)) {
    if (!config.orthogonalise) continue;
    expect_the_definition_on_gpu(
        {.lengths = {130, 70, 0, 7}, .config = config, .d_m = 8, .d_h = 12, .initial_state = true}, {DType::bf16});
  }
}

// Chunks of several tiles, chains with checkpoints, and widths of several tiles of products.
TEST(FastWeightsGpu, EqualTheDefinitionForLongChainsAndWideChunks) {
  WEFT_NEEDS_GPU();
  FastWeightConfig detached{.chunk = 300};
  detached.detach_norm = true;
  expect_the_definition_on_gpu({.lengths = {1000}, .config = {.chunk = 300}, .H = 1});
  expect_the_definition_on_gpu({.lengths = {650, 300}, .config = detached, .H = 1, .forget = false});
  expect_the_definition_on_gpu({.lengths = {70, 33},
                                .config = {.chunk = 32, .norm = NormMode::pre},
                                .H = 2,
                                .d_m = 64,
                                .d_h = 80,
                                .rate = 0.02});
  expect_the_definition_on_gpu({.lengths = {100, 33, 32, 7},
                                .config = {.chunk = 1, .loss = InnerLoss::l2, .norm = NormMode::none},
                                .rate = 0.02});
}

MemoryCase with(std::vector<std::int32_t> lengths, const FastWeightConfig& config) {
  return {.lengths = std::move(lengths), .config = config, .d_m = 12, .d_h = 20};
}

TEST(FastWeightsGpu, LaterTokensDoNotReachEarlierOnes) {
  WEFT_NEEDS_GPU();
  const OnGpu gpu;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const FastWeightConfig& config : all_configs(16)) {
      MemoryCase c = with({50}, config);
      c.final_gradient = false;
      const MemoryTensors in = stored(make_tensors(c), dtype);
      const MemoryResult before = evaluate(c, in);
      for (const std::int64_t t : {1, 15, 16, 40}) {
        const MemoryResult after = evaluate(c, disturbed(in, stored(make_tensors(c, 901), dtype), t, c.tokens()));
        EXPECT_TRUE(bitwise_equal(after.out.rows(0, t), before.out.rows(0, t))) << t;
      }
      expect_tokens_after_the_last_gradient_get_none(c, in);
    }
  }
}

TEST(FastWeightsGpu, DocumentsAreAloneWhereverTheyLie) {
  WEFT_NEEDS_GPU();
  const OnGpu gpu;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const FastWeightConfig& config : all_configs(16)) {
      const MemoryCase c = with({20, 0, 33, 1, 64, 16, 17}, config);
      expect_document_is_not_seen(c, stored(make_tensors(c), dtype), stored(make_tensors(c, 901), dtype), 2);
      expect_packed_documents_equal_each_alone(c, stored(make_tensors(c), dtype));
    }
  }
}

TEST(FastWeightsGpu, SplittingASequenceCarriesTheStateAndItsGradient) {
  WEFT_NEEDS_GPU();
  const OnGpu gpu;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const FastWeightConfig& config : all_configs(16)) {
      MemoryCase c = with({71}, config);
      c.initial_state = true;
      for (const std::int64_t split : {0, 16, 48}) {
        expect_split_carries_the_state(c, c, c, stored(make_tensors(c), dtype), split, 16, tolerance(dtype));
      }
    }
  }
}

}  // namespace
}  // namespace weft
