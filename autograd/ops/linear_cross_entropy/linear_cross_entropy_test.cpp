#include "autograd/ops/linear_cross_entropy/linear_cross_entropy.h"

#include <cmath>
#include <omp.h>

#include "autograd/parameter.h"
#include "autograd/philox.h"
#include "autograd/transfer.h"
#include "tests/support/op_check.h"

namespace weft {
namespace {

using testing::bitwise_equal;
using testing::cast;
using testing::close;
using testing::normal;
using testing::OpCase;

// Labels in [0, V); every `ignore_every`-th is -1 (0: none).
Tensor labels_of(std::int64_t T, std::int64_t V, std::int64_t ignore_every) {
  std::vector<std::int32_t> labels;
  for (std::int64_t t = 0; t < T; ++t) {
    RandomWords words(5, RandomStream::test, static_cast<std::uint64_t>(t));
    const auto label = static_cast<std::int32_t>(words.word() % static_cast<std::uint32_t>(V));
    labels.push_back(ignore_every > 0 && t % ignore_every == 1 ? -1 : label);
  }
  return Tensor::from({T}, labels);
}

Tensor weights_of(std::int64_t T) {
  return cast(testing::uniform({T}, 9, 0.25, 2.0), DType::f32);
}

// Everything from plain loops over [T, V] logits, in fp64.
struct Naive {
  double loss = 0.0;
  LossSums sums = {};
  Tensor token_losses = {}, dx = {}, dweight = {};
};
Naive naive(const Tensor& x, const Tensor& weight, const Tensor& labels, const Tensor& weights, double denominator,
            double z_loss) {
  const std::int64_t T = x.dim(0), d = x.dim(1), V = weight.dim(0);
  Naive r{.token_losses = Tensor::zeros({T}, DType::f64),
          .dx = Tensor::zeros({T, d}, DType::f64),
          .dweight = Tensor::zeros({V, d}, DType::f64)};
  const Tensor x64 = cast(x, DType::f64), weight64 = cast(weight, DType::f64);
  const double* X = x64.data<double>();
  const double* W = weight64.data<double>();
  for (std::int64_t t = 0; t < T; ++t) {
    const std::int32_t label = labels.data<std::int32_t>()[t];
    if (label < 0) continue;
    std::vector<double> logits(static_cast<std::size_t>(V), 0.0);
    for (std::int64_t v = 0; v < V; ++v) {
      for (std::int64_t c = 0; c < d; ++c) logits[static_cast<std::size_t>(v)] += X[t * d + c] * W[v * d + c];
    }
    const double largest = *std::max_element(logits.begin(), logits.end());
    double sum = 0.0;
    for (const double l : logits) sum += std::exp(l - largest);
    const double log_z = largest + std::log(sum);
    const double token_loss = log_z - logits[static_cast<std::size_t>(label)];
    const double w = weights.defined() ? static_cast<double>(weights.data<float>()[t]) : 1.0;
    r.token_losses.data<double>()[t] = token_loss;
    r.sums.loss += w * token_loss;
    r.sums.log_z_squared += w * log_z * log_z;
    r.sums.weight += w;
    ++r.sums.token_count;
    for (std::int64_t v = 0; v < V; ++v) {
      const double p = std::exp(logits[static_cast<std::size_t>(v)] - log_z);
      const double g = w / denominator * (p * (1.0 + 2.0 * z_loss * log_z) - (v == label ? 1.0 : 0.0));
      for (std::int64_t c = 0; c < d; ++c) {
        r.dx.data<double>()[t * d + c] += g * W[v * d + c];
        r.dweight.data<double>()[v * d + c] += g * X[t * d + c];
      }
    }
  }
  r.loss = (r.sums.loss + z_loss * r.sums.log_z_squared) / denominator;
  return r;
}

struct Computed {
  double loss = 0.0;
  LossSums sums = {};
  Tensor token_losses = {}, dx = {}, dweight = {};
};
Computed compute_on(Tape& tape, const Tensor& x, const Tensor& weight, const Tensor& labels, const Tensor& weights,
                    double denominator, double z_loss, double seed = 1.0) {
  const DType accumulator = accumulator_dtype(x.dtype());
  const auto host = [&](const Tensor& t) { return cast(to_host(t, tape.stream()), t.dtype()); };
  const Var x_leaf = tape.leaf(tape.here(x)), weight_leaf = tape.leaf(tape.here(weight), accumulator);
  const Tensor token_losses = tape.empty({x.dim(0)}, accumulator);
  Computed r;
  const LossTerms terms =
      linear_cross_entropy(tape, x_leaf, weight_leaf, tape.here(labels), tape.here(weights),
                           {.denominator = denominator, .z_loss = z_loss, .token_losses = token_losses});
  tape.backward(terms.loss, tape.here(cast(Tensor::from<double>({1}, std::vector{seed}), accumulator)));
  r.loss = cast(host(terms.loss.value), DType::f64).data<double>()[0];
  r.sums = read_loss_sums(terms.sums, tape.stream());
  r.token_losses = host(token_losses);
  r.dx = host(tape.gradient(x_leaf));
  r.dweight = host(tape.gradient(weight_leaf));
  return r;
}
Computed compute(const Tensor& x, const Tensor& weight, const Tensor& labels, const Tensor& weights, double denominator,
                 double z_loss, double seed = 1.0) {
  Tape tape(heap_allocator(Hygiene::hostile));
  return compute_on(tape, x, weight, labels, weights, denominator, z_loss, seed);
}

OP_TEST(LinearCrossEntropy, Gradients) {
  struct Case {
    std::int64_t T, d, V, ignore_every;
    double z_loss;
    bool weighted;
  };
  for (const Case& k : {Case{1, 3, 2, 0, 0.0, false}, Case{7, 5, 11, 3, 0.0, false}, Case{9, 4, 37, 4, 0.02, true},
                        Case{33, 8, 600, 0, 1e-4, false}}) {
    const Tensor labels = labels_of(k.T, k.V, k.ignore_every);
    const Tensor weights = k.weighted ? weights_of(k.T) : Tensor{};
    check_op(OpCase{.name = fmt::format("T {} d {} V {} z {}", k.T, k.d, k.V, k.z_loss),
                    .inputs = {normal({k.T, k.d}, 1), testing::weight(normal({k.V, k.d}, 2))},
                    .function = [&](Tape& tape, std::span<const Var> in) {
                      return std::vector{linear_cross_entropy(tape, in[0], in[1], tape.here(labels), tape.here(weights),
                                                              {.denominator = 3.0, .z_loss = k.z_loss})
                                             .loss};
                    }});
  }
}

// Chunks hold 256 tokens at this vocabulary (fp32: 4 MiB / 16 KiB): one short chunk, exact ones, and a remainder; with
// ignored tokens in between, chunks are gathered.
TEST(LinearCrossEntropy, ChunksEqualTheWholeMatrix) {
  const std::int64_t V = 4096, d = 8;
  struct Case {
    std::int64_t T, ignore_every;
  };
  for (const auto& [T, ignore_every] : {Case{100, 0}, Case{256, 0}, Case{257, 0}, Case{512, 0}, Case{600, 7}}) {
    const Tensor x = normal({T, d}, 1), weight = normal({V, d}, 2);
    const Tensor labels = labels_of(T, V, ignore_every), weights = weights_of(T);
    const double denominator = static_cast<double>(T) / 2, z_loss = 1e-3;
    SCOPED_TRACE(fmt::format("T {} ignoring every {}", T, ignore_every));
    {
      const Naive expected = naive(x, weight, labels, weights, denominator, z_loss);
      const Computed fp64 = compute(x, weight, labels, weights, denominator, z_loss);
      EXPECT_NEAR(fp64.loss, expected.loss, 1e-12 * expected.loss);
      EXPECT_NEAR(fp64.sums.loss, expected.sums.loss, 1e-12 * expected.sums.loss);
      EXPECT_NEAR(fp64.sums.log_z_squared, expected.sums.log_z_squared, 1e-12 * expected.sums.log_z_squared);
      EXPECT_NEAR(fp64.sums.weight, expected.sums.weight, 1e-12 * expected.sums.weight);
      EXPECT_EQ(fp64.sums.token_count, expected.sums.token_count);
      EXPECT_TRUE(close(fp64.token_losses, expected.token_losses, 1e-12, 1e-10));
      EXPECT_TRUE(close(fp64.dx, expected.dx, 1e-11, 1e-10));
      EXPECT_TRUE(close(fp64.dweight, expected.dweight, 1e-11, 1e-10));
    }
    const Tensor x32 = cast(x, DType::f32), weight32 = cast(weight, DType::f32);
    const Naive expected = naive(x32, weight32, labels, weights, denominator, z_loss);
    const Computed fp32 = compute(x32, weight32, labels, weights, denominator, z_loss);
    EXPECT_NEAR(fp32.loss, expected.loss, 2e-6 * expected.loss);
    EXPECT_TRUE(close(fp32.token_losses, expected.token_losses, 2e-6, 1e-4));
    EXPECT_TRUE(close(fp32.dx, expected.dx, 1e-5, 1e-4));
    EXPECT_TRUE(close(fp32.dweight, expected.dweight, 1e-5, 1e-4));
  }
}

TEST(LinearCrossEntropy, UniformModelGivesLogV) {
  const std::int64_t T = 40, V = 257;
  const Computed r =
      compute(Tensor::zeros({T, 4}, DType::f32), cast(normal({V, 4}, 2), DType::f32), labels_of(T, V, 0), {}, T, 0.0);
  EXPECT_NEAR(r.loss, std::log(257.0), 2e-6);
  for (const float l : r.token_losses.span<float>()) EXPECT_NEAR(l, std::log(257.0), 2e-6);
}

// d/d(log Z) of the z-loss alone: with one token and one logit that dominates, log Z is that logit and the
// cross-entropy vanishes.
TEST(LinearCrossEntropy, ZLossIsTheSquareOfLogZ) {
  const Tensor x = Tensor::from<double>({1, 1}, std::vector{1.0});
  const Tensor weight = Tensor::from<double>({2, 1}, std::vector{50.0, -50.0});
  const Tensor labels = Tensor::from<std::int32_t>({1}, std::vector<std::int32_t>{0});
  const Computed r = compute(x, weight, labels, {}, 1.0, 0.01);
  EXPECT_NEAR(r.loss, 0.01 * 2500.0, 1e-12);
  EXPECT_NEAR(r.sums.log_z_squared, 2500.0, 1e-10);
  EXPECT_NEAR(r.sums.loss, 0.0, 1e-12);
  EXPECT_NEAR(r.dweight.data<double>()[0], 2.0 * 0.01 * 50.0, 1e-12);
  // Separate equals fused: the z-loss is what the loss with it has over the loss without.
  const std::int64_t T = 20, V = 30, d = 6;
  const Tensor a = normal({T, d}, 1), b = normal({V, d}, 2), c = labels_of(T, V, 5);
  const Computed with = compute(a, b, c, {}, 7.0, 0.1), without = compute(a, b, c, {}, 7.0, 0.0);
  EXPECT_NEAR(with.loss - without.loss, 0.1 * without.sums.log_z_squared / 7.0, 1e-12);
  EXPECT_EQ(with.sums.loss, without.sums.loss);
}

TEST(LinearCrossEntropy, SeedScalesAndWeightGradientAccumulates) {
  const std::int64_t T = 20, V = 30, d = 6;
  const Tensor x = normal({T, d}, 1), weight = normal({V, d}, 2), labels = labels_of(T, V, 5);
  const Computed one = compute(x, weight, labels, {}, 7.0, 0.1), four = compute(x, weight, labels, {}, 7.0, 0.1, 4.0);
  for (std::int64_t i = 0; i < T * d; ++i) EXPECT_EQ(four.dx.data<double>()[i], 4.0 * one.dx.data<double>()[i]);
  for (std::int64_t i = 0; i < V * d; ++i)
    EXPECT_EQ(four.dweight.data<double>()[i], 4.0 * one.dweight.data<double>()[i]);

  // Nothing reaches a parameter before backward; then it is added.
  ParameterStore store;
  Parameter& p = store.declare("head", {V, d}, ParameterKind::head, Init::constant(0.0));
  store.initialise(1, DType::f64);
  p.value.copy_from(weight);
  for (double& g : p.grad.span<double>()) g = 1.0;
  Tape tape(heap_allocator(Hygiene::hostile));
  const LossTerms terms =
      linear_cross_entropy(tape, Tape::constant(x), tape.parameter(p), labels, {}, {.denominator = 7.0, .z_loss = 0.1});
  for (const double g : p.grad.span<double>()) EXPECT_EQ(g, 1.0);
  tape.backward(terms.loss, Tensor::from<double>({1}, std::vector{4.0}));
  for (std::int64_t i = 0; i < V * d; ++i) {
    EXPECT_DOUBLE_EQ(p.grad.data<double>()[i], 1.0 + 4.0 * one.dweight.data<double>()[i]);
  }
}

TEST(LinearCrossEntropy, IgnoredTokensLeaveNoTrace) {
  const std::int64_t T = 300, V = 40, d = 6;
  const Tensor labels = labels_of(T, V, 3), weights = weights_of(T);
  const Tensor x = cast(normal({T, d}, 1), DType::f32), weight = cast(normal({V, d}, 2), DType::f32);
  const Computed clean = compute(x, weight, labels, weights, 10.0, 1e-3);
  Tensor spoiled = cast(x, DType::f32), spoiled_weights = cast(weights, DType::f32);
  for (std::int64_t t = 0; t < T; ++t) {
    if (labels.data<std::int32_t>()[t] != -1) continue;
    for (std::int64_t c = 0; c < d; ++c) {
      EXPECT_EQ(clean.dx.data<float>()[t * d + c], 0.0f);
      spoiled.data<float>()[t * d + c] = NAN;
    }
    EXPECT_EQ(clean.token_losses.data<float>()[t], 0.0f);
    spoiled_weights.data<float>()[t] = NAN;
  }
  const Computed r = compute(spoiled, weight, labels, spoiled_weights, 10.0, 1e-3);
  EXPECT_EQ(r.loss, clean.loss);
  EXPECT_EQ(r.sums.weight, clean.sums.weight);
  EXPECT_TRUE(bitwise_equal(r.dx, clean.dx));
  EXPECT_TRUE(bitwise_equal(r.dweight, clean.dweight));
}

TEST(LinearCrossEntropy, NothingToLearnFrom) {
  const Tensor weight = normal({5, 3}, 2);
  for (const std::int64_t T : {0, 4}) {
    const Tensor labels = Tensor::from({T}, std::vector<std::int32_t>(static_cast<std::size_t>(T), -1));
    const Computed r = compute(normal({T, 3}, 1), weight, labels, {}, 8.0, 1e-3);
    EXPECT_EQ(r.loss, 0.0);
    EXPECT_EQ(r.sums.loss, 0.0);
    EXPECT_EQ(r.sums.weight, 0.0);
    EXPECT_EQ(r.sums.token_count, 0);
    for (const double g : r.dx.span<double>()) EXPECT_EQ(g, 0.0);
    for (const double g : r.dweight.span<double>()) EXPECT_EQ(g, 0.0);
  }
}

TEST(LinearCrossEntropy, ExtremeLogitsStayFinite) {
  const Tensor x = Tensor::from<float>({2, 1}, std::vector{1.0f, -1.0f});
  const Tensor weight = Tensor::from<float>({3, 1}, std::vector{1e4f, 0.0f, -1e4f});
  const Tensor labels = Tensor::from<std::int32_t>({2}, std::vector<std::int32_t>{2, 2});
  const Computed r = compute(x, weight, labels, {}, 2.0, 1e-4);
  EXPECT_EQ(r.token_losses.data<float>()[0], 2e4f);
  EXPECT_EQ(r.token_losses.data<float>()[1], 0.0f);
  EXPECT_NEAR(r.loss, (2e4 + 1e-4 * 2e8) / 2.0, 1e-2);
  for (const Tensor& t : {r.dx, r.dweight}) {
    for (const float g : t.span<float>()) EXPECT_TRUE(std::isfinite(g));
  }
}

// One chunk of logits, the gradients, and per-token scalars: four times the tokens add x-sized memory only.
TEST(LinearCrossEntropy, NeverHoldsTheLogits) {
  const std::int64_t V = 16384, d = 4;
  const auto peak = [&](std::int64_t T, Tape::Mode mode) {
    const auto memory = heap_allocator();
    Tape tape(memory, mode);
    const Var x = tape.leaf(Tensor::zeros({T, d}, DType::f32)), weight = tape.leaf(Tensor::zeros({V, d}, DType::f32));
    const LossTerms terms = linear_cross_entropy(tape, x, weight, labels_of(T, V, 0), {}, {.denominator = 1.0});
    if (mode == Tape::Mode::record) tape.backward(terms.loss, Tensor::from<float>({1}, std::vector{1.0f}));
    return static_cast<double>(memory->stats().peak_bytes);
  };
  const double chunk = 256.0 * V * 4, full = 1024.0 * V * 4, slack = 1e6;
  for (const Tape::Mode mode : {Tape::Mode::inference, Tape::Mode::record}) {
    EXPECT_LT(peak(1024, mode), chunk + slack);
    EXPECT_LT(peak(1024, mode), full / 3);
    EXPECT_LT(peak(1024, mode) - peak(256, mode), 1e5);
  }
}

TEST(LinearCrossEntropy, ThreadsDoNotChangeBits) {
  struct Case {
    std::int64_t T, V, d;
  };
  for (const Case& k : {Case{700, 1000, 48}, Case{600, 4096, 130}, Case{50, 200, 100}, Case{1, 2000, 200}}) {
    const Tensor x = cast(normal({k.T, k.d}, 1), DType::f32), weight = cast(normal({k.V, k.d}, 2), DType::f32);
    const auto run = [&](int threads) {
      omp_set_num_threads(threads);
      return compute(x, weight, labels_of(k.T, k.V, 9), weights_of(k.T), 100.0, 1e-4);
    };
    const int threads = omp_get_max_threads();
    const Computed one = run(1), three = run(3);
    omp_set_num_threads(threads);
    SCOPED_TRACE(fmt::format("T {} V {} d {}", k.T, k.V, k.d));
    EXPECT_EQ(one.loss, three.loss);
    EXPECT_TRUE(bitwise_equal(one.token_losses, three.token_losses));
    EXPECT_TRUE(bitwise_equal(one.dx, three.dx));
    EXPECT_TRUE(bitwise_equal(one.dweight, three.dweight));
  }
}

Tape gpu_tape() {
  return Tape(testing::gpu_memory(std::size_t{3} << 30), Tape::Mode::record, testing::gpu_stream());
}

// Vocabularies of one tile of a row, several, and a remainder; ignored tokens that hold NaN; weights.
TEST(LinearCrossEntropyGpu, LossesAndGradients) {
  WEFT_NEEDS_GPU();
  struct Case {
    std::int64_t T, d, V, ignore_every;
    bool weighted;
  };
  for (const Case& k : {Case{40, 16, 8192, 0, false}, Case{300, 24, 8195, 3, true}, Case{65, 40, 33000, 4, true},
                        Case{0, 8, 64, 0, false}}) {
    const Tensor labels = labels_of(k.T, k.V, k.ignore_every);
    const Tensor weights = k.weighted ? weights_of(k.T) : Tensor{};
    for (const DType dtype : {DType::f32, DType::bf16}) {
      SCOPED_TRACE(fmt::format("T {} d {} V {} {}", k.T, k.d, k.V, name_of(dtype)));
      const Tensor x = cast(normal({k.T, k.d}, 1), dtype), weight = cast(normal({k.V, k.d}, 2, 0.5), dtype);
      const Naive expected = naive(x, weight, labels, weights, 50.0, 1e-3);
      Tensor spoiled = cast(cast(x, DType::f32), DType::f32);
      for (std::int64_t t = 0; t < k.T; ++t) {
        if (labels.data<std::int32_t>()[t] == -1) spoiled.data<float>()[t * k.d] = NAN;
      }
      const auto run = [&] {
        Tape tape = gpu_tape();
        return compute_on(tape, cast(spoiled, dtype), weight, labels, weights, 50.0, 1e-3);
      };
      const Computed r = run();
      const testing::Tolerance tolerance = dtype == DType::f32 ? testing::kFp32 : testing::kBf16;
      // The logits of bf16 operands are fp32.
      EXPECT_NEAR(r.loss, expected.loss, 2e-6 * expected.loss);
      EXPECT_NEAR(r.sums.loss, expected.sums.loss, 2e-6 * expected.sums.loss);
      EXPECT_NEAR(r.sums.log_z_squared, expected.sums.log_z_squared, 2e-6 * expected.sums.log_z_squared);
      EXPECT_NEAR(r.sums.weight, expected.sums.weight, 1e-12 * expected.sums.weight);
      EXPECT_EQ(r.sums.token_count, expected.sums.token_count);
      EXPECT_TRUE(close(r.token_losses, expected.token_losses, 2e-6, 1e-4));
      EXPECT_TRUE(close(r.dx, expected.dx, tolerance.backward, tolerance.max));
      EXPECT_TRUE(close(r.dweight, expected.dweight, tolerance.backward, tolerance.max));
      const Computed again = run();
      EXPECT_EQ(again.loss, r.loss);
      EXPECT_TRUE(bitwise_equal(again.dx, r.dx));
      EXPECT_TRUE(bitwise_equal(again.dweight, r.dweight));
    }
  }
}

// A promised seed of 1: the parameter has its gradient after the forward pass, the same as otherwise after backward.
TEST(LinearCrossEntropyGpu, UnitSeedReachesTheParameterAtOnce) {
  WEFT_NEEDS_GPU();
  const std::int64_t T = 130, d = 16, V = 700;
  const Tensor x = cast(normal({T, d}, 1), DType::bf16), labels = labels_of(T, V, 5);
  const auto gradients = [&](bool unit_seed) {
    ParameterStore store;
    Parameter& p = store.declare("head", {V, d}, ParameterKind::head, Init::normal(0.5));
    store.initialise(1, DType::f32);
    store.move_to(
        {.stream = testing::gpu_stream(), .lasting = testing::gpu_memory(), .arena = nullptr, .dtype = DType::bf16});
    std::vector<Tensor> list;
    Tape tape = gpu_tape();
    const Var leaf = tape.leaf(tape.here(x));
    int ready = 0;
    tape.on_parameter_ready = [&](Parameter&) { ++ready; };
    const LossTerms terms = linear_cross_entropy(tape, leaf, tape.parameter(p), tape.here(labels), {},
                                                 {.denominator = 7.0, .z_loss = 0.1, .unit_seed = unit_seed});
    const double largest = std::abs(cast(to_host(p.grad, tape.stream()), DType::f64).data<double>()[0]);
    EXPECT_EQ(largest > 0.0, unit_seed);
    tape.backward(terms.loss, tape.here(Tensor::from<float>({1}, std::vector{1.0f})));
    EXPECT_EQ(ready, 1);
    return std::vector{to_host(p.grad, tape.stream()), to_host(tape.gradient(leaf), tape.stream())};
  };
  const auto early = gradients(true), late = gradients(false);
  EXPECT_TRUE(bitwise_equal(early[0], late[0]));
  EXPECT_TRUE(bitwise_equal(early[1], late[1]));
}

TEST(LinearCrossEntropyGpu, ForeignLabelsSpoilTheLoss) {
  WEFT_NEEDS_GPU();
  for (const std::int32_t label : {5, -100}) {
    const Tensor labels = Tensor::from<std::int32_t>({3}, std::vector<std::int32_t>{0, -1, label});
    Tape tape = gpu_tape();
    EXPECT_TRUE(std::isnan(
        compute_on(tape, cast(normal({3, 2}, 1), DType::f32), cast(normal({5, 2}, 2), DType::f32), labels, {}, 1.0, 0.0)
            .loss));
  }
}

TEST(LinearCrossEntropy, RefusesForeignLabels) {
  const auto message = [](std::int32_t label) {
    const Tensor labels = Tensor::from<std::int32_t>({3}, std::vector<std::int32_t>{0, -1, label});
    try {
      compute(normal({3, 2}, 1), normal({5, 2}, 2), labels, {}, 1.0, 0.0);
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ExitCode::config);
      return std::string(e.what());
    }
    return std::string("accepted");
  };
  EXPECT_EQ(message(5), "cross-entropy: the label of row 2 is 5; expected 0 to 4, or -1 to ignore the row");
  EXPECT_EQ(message(-100), "cross-entropy: the label of row 2 is -100; expected 0 to 4, or -1 to ignore the row");
  EXPECT_THROW(compute(normal({3, 2}, 1), normal({5, 2}, 2), labels_of(3, 5, 0), {}, 0.0, 0.0), Error);
  EXPECT_THROW(compute(normal({3, 2}, 1), normal({5, 2}, 2), labels_of(4, 5, 0), {}, 1.0, 0.0), Error);
  EXPECT_THROW(compute(normal({3, 2}, 1), normal({5, 3}, 2), labels_of(3, 5, 0), {}, 1.0, 0.0), Error);
}

}  // namespace
}  // namespace weft
