// What attention must do whatever its kernels are: limits of its options, and the bitwise invariances.
#include <fmt/format.h>
#include <omp.h>

#include "modules/families/attention/attention_case.h"

namespace weft::testing {
namespace {

// Rows [begin, end) of all per-token results.
AttentionOutputs tokens_of(const AttentionOutputs& x, std::int64_t begin, std::int64_t end) {
  return {x.o.rows(begin, end),  x.lse.rows(begin, end), x.dq.rows(begin, end),
          x.dk.rows(begin, end), x.dv.rows(begin, end),  {}};
}

void expect_zero(const Tensor& x, const char* name) {
  for (const float y : x.span<float>()) ASSERT_EQ(y, 0.0f) << name;
}

TEST(AttentionProperties, WindowOfOneCopiesTheValue) {
  const AttentionCase c{.documents = documents_of({130}), .options = {.window = 1}, .D = 4, .D_V = 6};
  const AttentionInputs in = random_inputs(c);
  EXPECT_TRUE(close(run_tiled(c, in, DType::f64).o, in.v, 1e-15, 1e-15));

  // With a sink logit b, o = v sigma(a - b).
  AttentionCase with_sink = c;
  with_sink.sink_logit = true;
  const AttentionInputs sink_in = random_inputs(with_sink);
  const AttentionOutputs out = run_tiled(with_sink, sink_in, DType::f64);
  for (std::int64_t i = 0; i < 130; ++i) {
    double a = 0.0;
    for (std::int64_t x = 0; x < 4; ++x) a += sink_in.q.data<double>()[i * 4 + x] * sink_in.k.data<double>()[i * 4 + x];
    const double share = 1.0 / (1.0 + std::exp(sink_in.sink_logit.data<double>()[0] - a / 2.0));
    for (std::int64_t x = 0; x < 6; ++x) {
      EXPECT_NEAR(out.o.data<double>()[i * 6 + x], share * sink_in.v.data<double>()[i * 6 + x], 1e-14);
    }
  }
}

TEST(AttentionProperties, EqualKeysAverageTheVisibleValues) {
  for (const std::int32_t window : {0, 20}) {
    const AttentionCase c{.documents = documents_of({140}), .options = {.window = window}, .D = 4, .D_V = 2};
    const AttentionInputs in = random_inputs(c);
    for (std::int64_t i = 0; i < in.k.numel(); ++i) in.k.data<double>()[i] = in.k.data<double>()[i % 4];
    const AttentionOutputs out = run_tiled(c, in, DType::f64);
    for (std::int64_t i = 0; i < 140; ++i) {
      const std::int64_t first = window == 0 ? 0 : std::max<std::int64_t>(0, i - window + 1);
      for (std::int64_t x = 0; x < 2; ++x) {
        double mean = 0.0;
        for (std::int64_t j = first; j <= i; ++j) mean += in.v.data<double>()[j * 2 + x];
        mean /= static_cast<double>(i - first + 1);
        EXPECT_NEAR(out.o.data<double>()[i * 2 + x], mean, 1e-13);
      }
    }
  }
}

TEST(AttentionProperties, AWindowThatReachesTheStartIsFull) {
  const AttentionCase full{.documents = documents_of({150}), .G = 2};
  const AttentionInputs in = random_inputs(full);
  const AttentionOutputs expected = run_tiled(full, in, DType::f32);
  for (const AttentionOptions& options : {AttentionOptions{.window = 150}, AttentionOptions{.window = 1000},
                                          AttentionOptions{.window = 50, .sink_tokens = 100}}) {
    AttentionCase c = full;
    c.options = options;
    expect_equal_bits(run_tiled(c, in, DType::f32), expected);
  }
}

TEST(AttentionProperties, SoftCapLimits) {
  const AttentionCase plain{.documents = documents_of({100})};
  const AttentionInputs in = random_inputs(plain);
  AttentionCase c = plain;
  c.options.soft_cap = 1e7;
  expect_near(run_tiled(c, in, DType::f64), run_tiled(plain, in, DType::f64), {1e-11, 1e-11, 1e-10});
  c.options.soft_cap = 1e-9;
  const Tensor o = run_tiled(c, in, DType::f64).o;
  for (std::int64_t x = 0; x < 8; ++x) {
    double mean = 0.0;
    for (std::int64_t j = 0; j < 100; ++j) mean += in.v.data<double>()[j * 8 + x] / 100.0;
    EXPECT_NEAR(o.data<double>()[99 * 8 + x], mean, 1e-8);
  }
}

TEST(AttentionProperties, SinkLogitLimits) {
  const AttentionCase plain{.documents = documents_of({100}), .G = 2};
  AttentionCase c = plain;
  c.sink_logit = true;
  const AttentionInputs in = random_inputs(c);
  const AttentionOutputs expected = run_tiled(plain, in, DType::f32);
  for (const double low : {-1e4, -std::numeric_limits<double>::infinity()}) {
    for (double& b : in.sink_logit.span<double>()) b = low;
    const AttentionOutputs out = run_tiled(c, in, DType::f32);
    expect_near(out,
                AttentionOutputs{cast(expected.o, DType::f64),
                                 cast(expected.lse, DType::f64),
                                 cast(expected.dq, DType::f64),
                                 cast(expected.dk, DType::f64),
                                 cast(expected.dv, DType::f64),
                                 {}},
                kFp32);
    expect_zero(out.dsink_logit, "dsink_logit");
  }
  for (double& b : in.sink_logit.span<double>()) b = 1e4;
  const AttentionOutputs out = run_tiled(c, in, DType::f32);
  expect_zero(out.o, "o");
  expect_zero(out.dv, "dv");
}

TEST(AttentionProperties, GroupsEqualRepeatedKeys) {
  const AttentionCase grouped{.documents = documents_of({90, 40}), .H_KV = 2, .G = 3};
  const AttentionCase repeated{.documents = grouped.documents, .H_KV = 6, .G = 1};
  const AttentionInputs in = random_inputs(grouped);
  AttentionInputs wide = in;
  wide.k = Tensor::empty({130, 6, 8}, DType::f64);
  wide.v = Tensor::empty({130, 6, 8}, DType::f64);
  for (std::int64_t t = 0; t < 130; ++t) {
    for (std::int64_t h = 0; h < 6; ++h) {
      for (std::int64_t x = 0; x < 8; ++x) {
        wide.k.data<double>()[(t * 6 + h) * 8 + x] = in.k.data<double>()[(t * 2 + h / 3) * 8 + x];
        wide.v.data<double>()[(t * 6 + h) * 8 + x] = in.v.data<double>()[(t * 2 + h / 3) * 8 + x];
      }
    }
  }
  const AttentionOutputs a = run_tiled(grouped, in, DType::f64);
  AttentionOutputs b = run_tiled(repeated, wide, DType::f64);
  for (Tensor* gradient : {&b.dk, &b.dv}) {
    const Tensor sum = Tensor::zeros({130, 2, 8}, DType::f64);
    for (std::int64_t t = 0; t < 130; ++t) {
      for (std::int64_t h = 0; h < 6; ++h) {
        for (std::int64_t x = 0; x < 8; ++x) {
          sum.data<double>()[(t * 2 + h / 3) * 8 + x] += gradient->data<double>()[(t * 6 + h) * 8 + x];
        }
      }
    }
    *gradient = sum;
  }
  expect_near(a, b, kFp64Chunked);
}

TEST(AttentionProperties, OrderOfEarlierTokensDoesNotMatterWithoutPositions) {
  const AttentionCase c{.documents = documents_of({80})};
  const AttentionInputs in = random_inputs(c);
  const Tensor before = run_tiled(c, in, DType::f64).o;
  for (const Tensor* x : {&in.k, &in.v}) {
    double* rows = x->data<double>();
    for (std::int64_t t = 0; t < 39; ++t) std::swap_ranges(rows + t * 8, rows + t * 8 + 8, rows + (78 - t) * 8);
  }
  EXPECT_TRUE(close(run_tiled(c, in, DType::f64).o.rows(79, 80), before.rows(79, 80), 1e-12, 1e-12));
}

// --- bitwise ---------------------------------------------------------------------------------------------------------

const std::vector<AttentionOptions> kVariants = {
    {}, {.window = 16}, {.window = 65, .sink_tokens = 4}, {.window = 30, .sink_tokens = 2, .soft_cap = 2.0}};

TEST(AttentionBits, RunsRepeatForAnyNumberOfThreads) {
  for (const AttentionOptions& options : kVariants) {
    const AttentionCase c{
        .documents = documents_of({1, 700, 129}), .options = options, .H_KV = 2, .G = 2, .sink_logit = true};
    const AttentionInputs in = random_inputs(c);
    const AttentionOutputs first = run_tiled(c, in, DType::f32);
    const AttentionOutputs second = run_tiled(c, in, DType::f32);
    expect_equal_bits(first, second);
    EXPECT_TRUE(bitwise_equal(first.dsink_logit, second.dsink_logit));
    const int threads = omp_get_max_threads();
    omp_set_num_threads(threads > 1 ? 1 : 3);
    const AttentionOutputs other = run_tiled(c, in, DType::f32);
    omp_set_num_threads(threads);
    expect_equal_bits(first, other);
    EXPECT_TRUE(bitwise_equal(first.dsink_logit, other.dsink_logit));
  }
}

TEST(AttentionBits, TheFutureChangesNothing) {
  for (const AttentionOptions& options : kVariants) {
    const AttentionCase c{.documents = documents_of({200}), .options = options, .G = 2};
    const AttentionInputs in = random_inputs(c);
    const AttentionOutputs before = run_tiled(c, in, DType::f32);
    for (const std::int64_t t : {1, 64, 97, 150}) {
      SCOPED_TRACE(fmt::format("window {} token {}", options.window, t));
      const AttentionInputs other = random_inputs({.documents = c.documents, .G = 2, .seed = 99});
      AttentionInputs changed = random_inputs(c);
      for (auto [x, y] :
           {std::pair{&changed.q, &other.q}, std::pair{&changed.k, &other.k}, std::pair{&changed.v, &other.v}}) {
        x->rows(t, 200).copy_from(y->rows(t, 200));
      }
      EXPECT_TRUE(bitwise_equal(run_tiled(c, changed, DType::f32).o.rows(0, t), before.o.rows(0, t)));

      // The mirror: without gradient from tokens >= t, none reaches inputs at tokens >= t.
      AttentionInputs silent = random_inputs(c);
      silent.d_o.rows(t, 200).fill_zero();
      silent.dlse.rows(t, 200).fill_zero();
      const AttentionOutputs out = run_tiled(c, silent, DType::f32);
      expect_zero(out.dq.rows(t, 200), "dq");
      expect_zero(out.dk.rows(t, 200), "dk");
      expect_zero(out.dv.rows(t, 200), "dv");
    }
  }
}

TEST(AttentionBits, DocumentsAreIsolatedAndPackingIsInvariant) {
  const std::vector<std::int32_t> lengths = {17, 0, 130, 1, 600, 64};
  for (const AttentionOptions& options : kVariants) {
    const AttentionCase packed{
        .documents = documents_of(lengths), .options = options, .H_KV = 2, .G = 2, .sink_logit = true};
    const AttentionInputs in = random_inputs(packed);
    const AttentionOutputs whole = run_tiled(packed, in, DType::f32);
    std::int64_t begin = 0;
    for (const std::int32_t length : lengths) {
      SCOPED_TRACE(fmt::format("window {} length {}", options.window, length));
      AttentionCase alone = packed;
      alone.documents = documents_of({length});
      expect_equal_bits(run_tiled(alone, tokens_of(in, begin, begin + length), DType::f32),
                        tokens_of(whole, begin, begin + length));
      begin += length;
    }
    const AttentionInputs changed = random_inputs(packed);
    for (const Tensor* x : {&changed.q, &changed.k, &changed.v, &changed.d_o}) x->rows(17, 147).fill_zero();
    const AttentionOutputs out = run_tiled(packed, changed, DType::f32);
    expect_equal_bits(tokens_of(out, 0, 17), tokens_of(whole, 0, 17));
    expect_equal_bits(tokens_of(out, 147, 812), tokens_of(whole, 147, 812));
  }
}

// An anchored row: the anchor is the one token that documents share, and they do not see each other.
TEST(AttentionBits, AnchoredDocumentsAreIsolated) {
  const AttentionCase c{.documents = anchored_documents({100, 70}), .options = {.window = 30}, .G = 2};
  const AttentionInputs in = random_inputs(c);
  const AttentionOutputs before = run_tiled(c, in, DType::f32);
  AttentionInputs changed = random_inputs(c);
  for (const Tensor* x : {&changed.q, &changed.k, &changed.v, &changed.d_o}) x->rows(1, 101).fill_zero();
  const AttentionOutputs out = run_tiled(c, changed, DType::f32);
  expect_equal_bits(tokens_of(out, 101, 171), tokens_of(before, 101, 171));
  EXPECT_FALSE(bitwise_equal(out.dk.rows(0, 1), before.dk.rows(0, 1)));

  changed = random_inputs(c);
  changed.v.rows(0, 1).fill_zero();
  const Tensor o = run_tiled(c, changed, DType::f32).o;
  for (const std::int64_t t : {0, 1, 100, 101, 170}) {
    EXPECT_FALSE(bitwise_equal(o.rows(t, t + 1), before.o.rows(t, t + 1))) << t;
  }
}

// NaN in rows that belong to no document stays there.
TEST(AttentionBits, MemoryBeyondTheRowIsNotRead) {
  const AttentionCase longer{.documents = documents_of({100, 28}), .G = 2};
  const AttentionInputs all = random_inputs(longer);
  for (const Tensor* x : {&all.q, &all.k, &all.v, &all.d_o}) {
    for (double& y : x->rows(100, 128).span<double>()) y = std::numeric_limits<double>::quiet_NaN();
  }
  const AttentionCase c{.documents = documents_of({100}), .G = 2};
  expect_equal_bits(run_tiled(c, tokens_of(all, 0, 100), DType::f32), run_tiled(c, random_inputs(c), DType::f32));
}

}  // namespace
}  // namespace weft::testing
