// ttt_memory on a GPU: values and gradients against the oracle on the same rounded inputs, and what must not change a
// bit.
#include "modules/families/ttt/ttt_memory_test_cases.h"
#include "tests/support/gpu.h"
#include "tests/support/packed_invariance.h"

namespace weft {
namespace {

using namespace testing;

// What is stored beside activations of `dtype`: rates, offsets, LN and states in the accumulator type.
TttData stored(TttData data, DType dtype) {
  data = rounded(data, accumulator_dtype(dtype));
  TttTensors& x = data.x;
  for (Tensor* t : {&x.q, &x.k, &x.v, &x.w1, &x.b1, &x.w2, &x.b2, &data.d_o}) {
    if (t->defined()) *t = cast(*t, dtype);
  }
  return data;
}

Tolerance tolerance(DType dtype) {
  return dtype == DType::f32 ? kFp32 : kBf16TestTimeTraining;
}

void expect_the_recurrence_on_gpu(const TttCase& c) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    SCOPED_TRACE(fmt::format("{} {}", name_of(dtype), c.str()));
    const TttData given = stored(make_data(c), dtype);
    const TttResult reference = evaluate_reference(c, rounded(given, DType::f64));
    const OnGpu gpu;
    const TttResult got = evaluate(c, given);
    expect_close(got, reference, tolerance(dtype));
    expect_bitwise_equal(evaluate(c, given), got);
  }
}

class TttMemoryGpu : public ::testing::TestWithParam<std::int64_t> {
 protected:
  void SetUp() override { WEFT_NEEDS_GPU(); }
  TttCase with(std::vector<std::int32_t> lengths) const {
    return {.lengths = std::move(lengths), .m = GetParam(), .d = 12};
  }
};

TEST_P(TttMemoryGpu, DualFormEqualsThePrimalOne) {
  const std::int64_t m = GetParam();
  const std::vector<std::int32_t> lengths{0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 1000};
  const std::vector<std::int32_t> phases{3, 15, 1, 7, 0, 8, 15, 2, 9, 0, 4, 11, 5};
  for (const std::int32_t length : lengths) expect_the_recurrence_on_gpu({.lengths = {length}, .m = m, .H = 1});
  for (const bool state : {false, true}) {
    for (const bool final_gradient : {false, true}) {
      TttCase c{.lengths = lengths, .m = m, .final_gradient = final_gradient};
      if (state) c.phase = phases;
      expect_the_recurrence_on_gpu(c);
    }
  }
  for (const std::int64_t b : {1, 5, 40}) expect_the_recurrence_on_gpu({.lengths = {100, 0, 33}, .m = m, .b = b});
}

// Several tiles a product, and a memory that leaves shared memory.
TEST_P(TttMemoryGpu, WidthsOfModelsEqualThePrimalForm) {
  const std::int64_t m = GetParam();
  expect_the_recurrence_on_gpu({.lengths = {70, 33}, .m = m > 0 ? 256 : 0, .H = 2, .d = 64});
  expect_the_recurrence_on_gpu({.lengths = {50}, .m = m > 0 ? 130 : 0, .H = 1, .d = 96, .b = 20});
}

TEST_P(TttMemoryGpu, TheFutureChangesNothing) {
  const OnGpu gpu;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    TttCase c = with({50});
    c.final_gradient = false;
    expect_later_tokens_do_not_reach_earlier_outputs(c, stored(make_data(c), dtype), stored(make_data(c, 901), dtype));
    expect_tokens_after_the_last_gradient_get_none(c, stored(make_data(c), dtype));
  }
}

TEST_P(TttMemoryGpu, DocumentsNeitherSeeEachOtherNorMindBeingPacked) {
  const OnGpu gpu;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const TttCase c = with({20, 0, 33, 1, 64, 17});
    expect_document_is_not_seen(c, stored(make_data(c), dtype), stored(make_data(c, 901), dtype), 2);
    expect_packed_documents_equal_each_alone(c, stored(make_data(c), dtype));
  }
}

TEST_P(TttMemoryGpu, SplittingASequenceCarriesTheStateAndItsGradient) {
  const OnGpu gpu;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const std::int32_t split : {0, 16, 48, 23, 71}) {
      TttCase c = with({71});
      c.phase = {0};
      TttCase tail = c;
      tail.phase = {split % 16};
      expect_split_carries_the_state(c, c, tail, stored(make_data(c), dtype), split, 16, tolerance(dtype));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Hidden, TttMemoryGpu, ::testing::Values(0, 9), ::testing::PrintToStringParamName());

}  // namespace
}  // namespace weft
