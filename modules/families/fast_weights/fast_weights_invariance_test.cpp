// Special cases with known answers, what must not change a bit, and continuing from a state.
#include <algorithm>
#include <omp.h>

#include "modules/families/fast_weights/fast_weights_test_cases.h"
#include "modules/families/fast_weights/orthogonalise_cpu.h"
#include "tests/support/packed_invariance.h"

namespace weft {
namespace {

using namespace testing;

constexpr std::int64_t kChunk = 16;

MemoryTensors single(const MemoryCase& c, std::uint64_t seed = 1) {
  return rounded(make_tensors(c, seed), DType::f32);
}

bool all_zero(const Tensor& t) {
  const Tensor values = cast(t, DType::f64);
  return std::all_of(values.span<double>().begin(), values.span<double>().end(), [](double x) { return x == 0.0; });
}

// f_W(q) of the initial weights, for one token and head.
std::vector<double> fixed_network(const MemoryCase& c, const MemoryTensors& in, std::int64_t t, std::int64_t h) {
  const double* q = in.q.data<double>() + (t * c.H + h) * c.d_m;
  std::vector<double> out(q, q + c.d_m);
  if (!c.config.residual) std::fill(out.begin(), out.end(), 0.0);
  for (std::int64_t j = 0; j < c.d_h; ++j) {
    double a = 0.0, b = 0.0;
    for (std::int64_t x = 0; x < c.d_m; ++x) {
      a += in.w0.data<double>()[(h * c.d_h + j) * c.d_m + x] * q[x];
      b += in.w2.data<double>()[(h * c.d_h + j) * c.d_m + x] * q[x];
    }
    for (std::int64_t y = 0; y < c.d_m; ++y) {
      out[static_cast<std::size_t>(y)] +=
          a / (1.0 + std::exp(-a)) * b * in.w1.data<double>()[(h * c.d_m + y) * c.d_h + j];
    }
  }
  return out;
}

TEST(FastWeights, WithoutRatesAndForgettingTheNetworkIsFixed) {
  for (const bool residual : {false, true}) {
    const MemoryCase c{.lengths = {70, 5}, .config = {.chunk = kChunk, .norm = NormMode::none, .residual = residual}};
    const MemoryTensors in = make_tensors(c);
    in.eta.fill_zero();
    in.lambda.fill_zero();
    const MemoryResult r = evaluate(c, in);
    for (std::int64_t t = 0; t < c.tokens(); ++t) {
      for (std::int64_t h = 0; h < c.H; ++h) {
        const std::vector<double> expected = fixed_network(c, in, t, h);
        for (std::int64_t x = 0; x < c.d_m; ++x) {
          ASSERT_NEAR(r.out.data<double>()[(t * c.H + h) * c.d_m + x], expected[static_cast<std::size_t>(x)], 1e-14);
        }
      }
    }
  }
}

TEST(FastWeights, ASingleChunkIsOnlyRead) {
  for (const std::int32_t tokens : {7, 16}) {
    for (const FastWeightConfig& config : all_configs(kChunk)) {
      const MemoryCase c{.lengths = {tokens}, .config = config, .final_gradient = false};
      SCOPED_TRACE(c.str());
      const MemoryResult r = evaluate(c, make_tensors(c));
      for (const Tensor* g : {&r.dk, &r.dv, &r.deta, &r.dmu, &r.dlambda}) EXPECT_TRUE(all_zero(*g));
      for (const Tensor* g : {&r.dq, &r.dw0, &r.dw1, &r.dw2}) EXPECT_FALSE(all_zero(*g));
    }
  }
}

// A chunk that forgets everything and carries no momentum leaves its own gradient behind, in both.
TEST(FastWeights, ForgettingEverythingLeavesTheLastGradient) {
  MemoryCase c{.lengths = {48}, .config = {.chunk = kChunk, .norm = NormMode::none}, .initial_state = true};
  MemoryTensors in = make_tensors(c);
  in.mu.fill_zero();
  for (double& x : in.lambda.span<double>()) x = 1.0;
  const MemoryResult r = evaluate(c, in);
  EXPECT_TRUE(bitwise_equal(r.weights, r.momentum));
  in.momentum = normal(c.state_shape(), 77);
  EXPECT_TRUE(bitwise_equal(evaluate(c, in).weights, r.weights));
}

TEST(FastWeights, AbsentMomentumAndForgettingAreZeros) {
  for (const FastWeightConfig& config : all_configs(kChunk)) {
    MemoryCase c{.lengths = {40}, .config = config, .momentum = false, .forget = false};
    MemoryTensors in = make_tensors(c);
    MemoryResult absent = evaluate(c, in);
    in.mu = Tensor::zeros({c.tokens(), c.H}, DType::f64);
    in.lambda = Tensor::zeros({c.tokens(), c.H}, DType::f64);
    const MemoryResult zeros = evaluate(c, in);
    absent.dmu = zeros.dmu;
    absent.dlambda = zeros.dlambda;
    expect_bitwise_equal(absent, zeros);
  }
}

TEST(FastWeights, NormalisedRowsKeepTheirNorms) {
  const MemoryCase c{
      .lengths = {160},
      .config = {
          .chunk = kChunk, .loss = InnerLoss::dot, .norm = NormMode::post, .residual = false, .orthogonalise = true}};
  const MemoryTensors in = make_tensors(c);
  const Tensor W = evaluate(c, in).weights;
  const auto norm = [](const double* row, std::int64_t width) {
    double squares = 0.0;
    for (std::int64_t x = 0; x < width; ++x) squares += row[x] * row[x];
    return std::sqrt(squares);
  };
  const double* w = W.data<double>();
  for (std::int64_t h = 0; h < c.H; ++h) {
    for (const Tensor* start : {&in.w0, &in.w2, &in.w1}) {
      const std::int64_t width = start->dim(2);
      for (std::int64_t r = 0; r < start->dim(1); ++r, w += width) {
        const double n = norm(start->data<double>() + (h * start->dim(1) + r) * width, width);
        EXPECT_NEAR(norm(w, width) / n, 1.0, 1e-4);  // eps beside the norm before
      }
    }
  }
}

TEST(FastWeights, TheOrderInsideAWrittenChunkDoesNotMatterLater) {
  for (const FastWeightConfig& config : all_configs(kChunk)) {
    const MemoryCase c{.lengths = {60}, .config = config, .H = 1, .d_m = 8, .d_h = 8};
    SCOPED_TRACE(c.str());
    const MemoryTensors in = make_tensors(c);
    const MemoryTensors permuted = cloned(in);
    for (const auto& [from, to] :
         {std::pair{&in.k, &permuted.k}, std::pair{&in.v, &permuted.v}, std::pair{&in.eta, &permuted.eta},
          std::pair{&in.mu, &permuted.mu}, std::pair{&in.lambda, &permuted.lambda}}) {
      for (std::int64_t i = 0; i < kChunk; ++i) {
        const std::int64_t j = (5 * i + 3) % kChunk;
        to->rows(kChunk + i, kChunk + i + 1).copy_from(from->rows(kChunk + j, kChunk + j + 1));
      }
    }
    const MemoryResult a = evaluate(c, in), b = evaluate(c, permuted);
    EXPECT_TRUE(bitwise_equal(slice(b.out, 0, 2 * kChunk), slice(a.out, 0, 2 * kChunk)));
    EXPECT_TRUE(close(b.out, a.out, 1e-12, 1e-10));
    EXPECT_TRUE(close(b.weights, a.weights, 1e-12, 1e-10));
  }
}

TEST(FastWeights, LaterTokensDoNotReachEarlierOnes) {
  for (const FastWeightConfig& config : all_configs(kChunk)) {
    const MemoryCase c{.lengths = {50}, .config = config, .final_gradient = false};
    SCOPED_TRACE(c.str());
    expect_later_tokens_do_not_reach_earlier_outputs(c, single(c), single(c, 901));
    expect_tokens_after_the_last_gradient_get_none(c, single(c));
  }
}

TEST(FastWeights, DocumentsAreAloneWhereverTheyLie) {
  for (const FastWeightConfig& config : all_configs(kChunk)) {
    const MemoryCase c{.lengths = {20, 0, 33, 1, 64, 17}, .config = config, .H = 1, .initial_state = true};
    SCOPED_TRACE(c.str());
    expect_packed_documents_equal_each_alone(c, single(c));
    expect_document_is_not_seen(c, single(c), single(c, 901), 2);
  }
}

TEST(FastWeights, ThreadsGiveTheSameBits) {
  const FastWeightConfig lact{.chunk = 300, .loss = InnerLoss::dot, .norm = NormMode::post, .orthogonalise = true};
  for (const MemoryCase& c : {MemoryCase{.lengths = {700}, .config = {.chunk = 300}, .H = 3, .d_m = 16, .d_h = 20},
                              MemoryCase{.lengths = {700}, .config = lact, .H = 1, .d_m = 64, .d_h = 32},
                              MemoryCase{.lengths = {5, 300, 0, 64}, .config = {.chunk = kChunk}}}) {
    expect_threads_give_the_same_bits(c, single(c), {2, 3, 5});
  }
}

// A sequence in pieces of any length gives the same outputs and weights as in one; tokens one by one are decoding.
TEST(FastWeights, ContinuesFromAStateAnywhere) {
  for (const FastWeightConfig& config : all_configs(kChunk)) {
    const MemoryCase c{.lengths = {70}, .config = config, .momentum = config.residual, .forget = config.orthogonalise};
    SCOPED_TRACE(c.str());
    const MemoryTensors in = make_tensors(c);
    const MemoryResult whole = evaluate(c, in);
    for (const std::vector<std::int64_t>& cuts :
         {std::vector<std::int64_t>{0, 70}, {0, 5, 5, 21, 70}, {0, 16, 48, 69, 70}, {}}) {
      std::vector<std::int64_t> at = cuts;
      for (std::int64_t t = 0; cuts.empty() && t <= 70; ++t) at.push_back(t);
      FastWeightState state(2, in.w0, in.w1, in.w2, kChunk, cpu_place(DType::f64));
      const std::size_t bytes = state.bytes();
      Tape tape(heap_allocator(Hygiene::hostile), Tape::Mode::inference);
      for (std::size_t i = 0; i + 1 < at.size(); ++i) {
        const FastWeightState copy(state);
        const MemoryTensors piece = slice(in, at[i], at[i + 1], 0, 1);
        // Sequence 0 sees nothing.
        const DocumentsPtr documents =
            Documents::from_lengths(std::vector{0, static_cast<std::int32_t>(at[i + 1] - at[i])});
        const Tensor out = fast_weight_continue(tape, constants(piece), *documents, c.config, state);
        EXPECT_TRUE(close(out, whole.out.rows(at[i], at[i + 1]), 1e-12, 1e-10)) << at[i];
        EXPECT_TRUE(bitwise_equal(copy.weights.rows(0, 1), state.weights.rows(0, 1)));
      }
      EXPECT_TRUE(close(state.weights.rows(1, 2), whole.weights, 1e-12, 1e-10));
      EXPECT_TRUE(close(state.momentum.rows(1, 2), whole.momentum, 1e-12, 1e-10));
      EXPECT_EQ(state.pending, (std::vector<std::int32_t>{0, 70 % kChunk}));
      EXPECT_EQ(state.bytes(), bytes);
      EXPECT_EQ(static_cast<double>(bytes), 2.0 * FastWeightState::bytes_for(c.H, c.d_m, c.d_h, kChunk, DType::f64));
    }
  }
}

// Beyond inputs, outputs and gradients, backward keeps the weights between some chunks: their number grows as a root.
TEST(FastWeights, MemoryIsLinearInTheTokens) {
  const auto peak = [](std::int32_t tokens) {
    const MemoryCase c{.lengths = {tokens}, .config = {.chunk = 32}, .d_m = 8, .d_h = 8, .final_gradient = false};
    const MemoryTensors in = rounded(make_tensors(c), DType::f32);
    const auto memory = heap_allocator();
    Tape tape(memory);
    const auto leaf = [&](const Tensor& x) { return tape.leaf(x); };
    const FastWeightInputs x{leaf(in.q),      leaf(in.k),  leaf(in.v),  leaf(in.eta), leaf(in.mu),
                             leaf(in.lambda), leaf(in.w0), leaf(in.w1), leaf(in.w2)};
    tape.backward(fast_weight_memory(tape, x, documents_of(c), c.config), in.dout);
    return static_cast<std::int64_t>(memory->stats().peak_bytes);
  };
  const std::int64_t H = 2, d = 8, length = 8192;
  const std::int64_t per_token = H * (4 * d + 3 + 2) * 4;  // output and gradients
  // 16 and 23 checkpoints, and segments as long for each thread.
  const std::int64_t kept = omp_get_max_threads() * 16 * H * 6 * d * d * 4;
  EXPECT_LE(peak(2 * length) - peak(length), length * per_token + kept);
}

// --- orthogonalisation
// -------------------------------------------------------------------------------------------------

Tensor newton_schulz(const Tensor& Z) {
  const Tensor scratch = Tensor::zeros({Orthogonaliser<double>::scratch_elements(Z.dim(0), Z.dim(1))}, DType::f64);
  const Tensor D = Tensor::zeros(Z.shape(), DType::f64);
  Orthogonaliser<double>(Z.dim(0), Z.dim(1), scratch.data<double>()).run(Z.data<double>(), D.data<double>());
  return D;
}

TEST(NewtonSchulz, IgnoresTheScaleAndCommutesWithTransposition) {
  for (const Shape& shape : {Shape{6, 6}, Shape{5, 12}, Shape{12, 5}}) {
    const Tensor Z = normal(shape, 3), scaled = cast(Z, DType::f64);
    for (double& x : scaled.span<double>()) x *= 250.0;
    // The 1e-7 beside the norm is all that sees the scale.
    EXPECT_TRUE(close(newton_schulz(scaled), newton_schulz(Z), 1e-6, 1e-6));
    const Tensor transposed = Tensor::zeros({shape[1], shape[0]}, DType::f64);
    for (std::int64_t i = 0; i < Z.numel(); ++i) {
      transposed.data<double>()[i % shape[1] * shape[0] + i / shape[1]] = Z.data<double>()[i];
    }
    const Tensor D = newton_schulz(Z), Dt = newton_schulz(transposed);
    for (std::int64_t i = 0; i < Z.numel(); ++i) {
      EXPECT_NEAR(Dt.data<double>()[i % shape[1] * shape[0] + i / shape[1]], D.data<double>()[i], 1e-13);
    }
  }
}

TEST(NewtonSchulz, KeepsAnOrthogonalMatrixUpToAFactor) {
  constexpr std::int64_t n = 9;
  const Tensor u = normal({n}, 4), Q = Tensor::zeros({n, n}, DType::f64);  // a reflection
  double squares = 0.0;
  for (const double x : u.span<double>()) squares += x * x;
  for (std::int64_t i = 0; i < n * n; ++i) {
    Q.data<double>()[i] =
        (i / n == i % n ? 1.0 : 0.0) - 2.0 * u.data<double>()[i / n] * u.data<double>()[i % n] / squares;
  }
  const Tensor D = newton_schulz(Q);
  const double factor = D.data<double>()[0] / Q.data<double>()[0];
  EXPECT_GT(factor, 0.7);
  EXPECT_LT(factor, 1.2);
  for (std::int64_t i = 0; i < n * n; ++i) EXPECT_NEAR(D.data<double>()[i], factor * Q.data<double>()[i], 1e-13);
}

}  // namespace
}  // namespace weft
