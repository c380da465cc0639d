// titans_memory on a GPU: values and gradients against the oracle on the same rounded inputs, and what must not change
// a bit.
#include "modules/families/titans_memory/titans_memory_test_cases.h"
#include "tests/support/gpu.h"
#include "tests/support/packed_invariance.h"

namespace weft {
namespace {

using namespace testing;

// What is stored beside activations of `dtype`: factors, rates and states in the accumulator type.
TitansData stored(TitansData data, DType dtype) {
  data = rounded(data, accumulator_dtype(dtype));
  TitansTensors& x = data.x;
  for (Tensor* t : {&x.q, &x.k, &x.v, &x.w1, &x.w2, &data.d_o}) {
    if (t->defined()) *t = cast(*t, dtype);
  }
  return data;
}

Tolerance tolerance(DType dtype) {
  return dtype == DType::f32 ? kFp32 : kBf16TestTimeTraining;
}

void expect_the_recurrence_on_gpu(const TitansCase& c) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    SCOPED_TRACE(fmt::format("{} {}", name_of(dtype), c.str()));
    const TitansData given = stored(make_data(c), dtype);
    const TitansResult reference = evaluate_reference(c, rounded(given, DType::f64));
    const OnGpu gpu;
    const TitansResult got = evaluate(c, given);
    expect_close(got, reference, tolerance(dtype));
    expect_bitwise_equal(evaluate(c, given), got);
  }
}

class TitansMemoryGpu : public ::testing::TestWithParam<std::int64_t> {
 protected:
  void SetUp() override { WEFT_NEEDS_GPU(); }
  TitansCase with(std::vector<std::int32_t> lengths) const {
    return {.lengths = std::move(lengths), .m = GetParam(), .d_k = 12, .d_v = 7};
  }
};

TEST_P(TitansMemoryGpu, ChunkedFormEqualsTheRecurrence) {
  const std::int64_t m = GetParam();
  const std::vector<std::int32_t> lengths{0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 1000};
  const std::vector<std::int32_t> phases{3, 15, 1, 7, 0, 8, 15, 2, 9, 0, 4, 11, 5};
  for (const std::int32_t length : lengths) {
    if (m > 0 && length == 1000) continue;  // alone, all that is left of the memory is forgotten to subnormal numbers
    expect_the_recurrence_on_gpu({.lengths = {length}, .m = m, .H = 1});
  }
  for (const bool state : {false, true}) {
    for (const bool final_gradient : {false, true}) {
      TitansCase c{.lengths = lengths, .m = m, .final_gradient = final_gradient};
      if (state) c.phase = phases;
      expect_the_recurrence_on_gpu(c);
    }
  }
  for (const std::int64_t C : {1, 5, 64, 200}) {
    expect_the_recurrence_on_gpu({.lengths = {100, 0, 33}, .m = m, .C = C, .rate = 0.05});
  }
}

// Several tiles a product, and a memory that leaves shared memory.
TEST_P(TitansMemoryGpu, WidthsOfModelsEqualTheRecurrence) {
  const std::int64_t m = GetParam();
  expect_the_recurrence_on_gpu({.lengths = {70, 33}, .m = m > 0 ? 128 : 0, .d_k = 64, .d_v = 64, .rate = 0.02});
  expect_the_recurrence_on_gpu(
      {.lengths = {150}, .m = m > 0 ? 70 : 0, .H = 1, .d_k = 32, .d_v = 100, .C = 64, .rate = 0.02});
}

TEST_P(TitansMemoryGpu, TheFutureChangesNothing) {
  const OnGpu gpu;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    TitansCase c = with({50});
    c.final_gradient = false;
    expect_later_tokens_do_not_reach_earlier_outputs(c, stored(make_data(c), dtype), stored(make_data(c, 901), dtype));
    expect_tokens_after_the_last_gradient_get_none(c, stored(make_data(c), dtype));
  }
}

TEST_P(TitansMemoryGpu, DocumentsNeitherSeeEachOtherNorMindBeingPacked) {
  const OnGpu gpu;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const TitansCase c = with({20, 0, 33, 1, 64, 17});
    expect_document_is_not_seen(c, stored(make_data(c), dtype), stored(make_data(c, 901), dtype), 2);
    expect_packed_documents_equal_each_alone(c, stored(make_data(c), dtype));
  }
}

TEST_P(TitansMemoryGpu, SplittingASequenceCarriesTheStateAndItsGradient) {
  const OnGpu gpu;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const std::int32_t split : {0, 16, 48, 23, 71}) {
      TitansCase c = with({71});
      c.phase = {0};
      TitansCase tail = c;
      tail.phase = {split % 16};
      expect_split_carries_the_state(c, c, tail, stored(make_data(c), dtype), split, 16, tolerance(dtype));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Hidden, TitansMemoryGpu, ::testing::Values(0, 7), ::testing::PrintToStringParamName());

}  // namespace
}  // namespace weft
