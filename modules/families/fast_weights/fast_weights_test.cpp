// Values and gradients: the oracle against finite differences, the kernels against the oracle.
#include <algorithm>
#include <functional>

#include "modules/families/fast_weights/fast_weights_test_cases.h"
#include "tests/support/op_check.h"

namespace weft {
namespace {

using namespace testing;

double inner(const Tensor& a, const Tensor& b) {
  if (!a.defined()) return 0.0;
  double sum = 0.0;
  for (std::int64_t i = 0; i < a.numel(); ++i) sum += a.data<double>()[i] * b.data<double>()[i];
  return sum;
}

// Newton-Schulz steps enlarge small singular values up to 500 times, and differences of nearly equal numbers with them.
double difference_tolerance(const FastWeightConfig& config) {
  return config.orthogonalise ? 1e-4 : 1e-6;
}

TEST(FastWeightOracle, AgreesWithFiniteDifferences) {
  for (const FastWeightConfig& config : all_configs(4)) {
    const MemoryCase c{.lengths = {14, 0, 6}, .config = config, .initial_state = config.loss == InnerLoss::l2};
    SCOPED_TRACE(c.str());
    const MemoryTensors in = make_tensors(c);
    const MemoryResult r = evaluate_reference(c, in);
    const auto loss = [&] {
      const MemoryResult at = evaluate_reference(c, in);
      return inner(at.out, in.dout) + inner(at.weights, in.dweights) + inner(at.momentum, in.dmomentum);
    };
    const auto check = [&](const Tensor& x, const Tensor& gradient, const char* name) {
      if (!x.defined()) return;
      const Tensor direction = normal(x.shape(), 99), original = cast(x, DType::f64);
      const auto loss_at = [&](double h) {
        for (std::int64_t i = 0; i < x.numel(); ++i) {
          x.data<double>()[i] = original.data<double>()[i] + h * direction.data<double>()[i];
        }
        return loss();
      };
      const double numeric = (loss_at(1e-6) - loss_at(-1e-6)) / 2e-6;
      x.copy_from(original);
      const double scale = std::sqrt(inner(gradient, gradient));
      EXPECT_GT(scale, 0.0) << name;
      EXPECT_NEAR(numeric, inner(gradient, direction), difference_tolerance(config) * scale) << name;
    };
    check(in.q, r.dq, "q");
    check(in.k, r.dk, "k");
    check(in.v, r.dv, "v");
    check(in.eta, r.deta, "eta");
    check(in.mu, r.dmu, "mu");
    check(in.lambda, r.dlambda, "lambda");
    if (!c.initial_state || config.norm != NormMode::none) {  // else nothing depends on them
      check(in.w0, r.dw0, "w0");
      check(in.w1, r.dw1, "w1");
      check(in.w2, r.dw2, "w2");
    }
    check(in.weights, r.dinitial_weights, "initial weights");
    check(in.momentum, r.dinitial_momentum, "initial momentum");
  }
}

// T = 3.5 L.
OpCase op_case(const MemoryCase& c) {
  const MemoryTensors in = make_tensors(c);
  OpCase op{.name = c.str(),
            .inputs = {in.q, in.k, in.v, vector_input(in.eta), weight(in.w0), weight(in.w1), weight(in.w2),
                       vector_input(in.mu), vector_input(in.lambda)},
            .function =
                [c](Tape& tape, std::span<const Var> x) {
                  const FastWeightInputs from{x[0], x[1], x[2], x[3], x[7], x[8], x[4], x[5], x[6]};
                  const FastWeights initial = x.size() > 9 ? FastWeights{x[9], x[10]} : FastWeights{};
                  const auto [out, final] =
                      fast_weight_memory_with_state(tape, from, initial, documents_of(c), c.config);
                  return std::vector{out, final.weights, final.momentum};
                },
            .bf16 = kBf16TestTimeTraining,
            .finite_difference = difference_tolerance(c.config)};
  if (c.initial_state) op.inputs.insert(op.inputs.end(), {vector_input(in.weights), vector_input(in.momentum)});
  return op;
}

OP_TEST(FastWeights, PassesTheOperationCheck) {
  for (const FastWeightConfig& config : all_configs(4)) {
    if (config.orthogonalise) continue;
    check_op(op_case({.lengths = {14, 3}, .config = config, .H = 1, .d_m = 3}));
    check_op(op_case({.lengths = {14}, .config = config, .H = 2, .d_m = 4, .d_h = 3, .initial_state = true}));
  }
}

// Four tokens make a Z that is nearly singular, and fp32 as far from fp64 as its inputs are, magnified. The test below
// asks for more.
OP_TEST(FastWeights, PassesTheOperationCheckOrthogonalised) {
  for (const FastWeightConfig& config : all_configs(4)) {
    if (!config.orthogonalise) continue;
    for (OpCase op :
         {op_case({.lengths = {14, 3}, .config = config, .H = 1, .d_m = 3}),
          op_case({.lengths = {14}, .config = config, .H = 1, .d_m = 4, .d_h = 3, .initial_state = true})}) {
      op.fp32 = {1e-5, 2e-4, 2e-4};
      check_op(op);
    }
  }
}

TEST(FastWeights, EqualsTheDefinition) {
  const std::vector<std::int32_t> lengths{0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129};
  for (const FastWeightConfig& config : all_configs(16)) {
    for (const bool initial : {false, true}) {
      const MemoryCase c{
          .lengths = lengths, .config = config, .H = 1, .initial_state = initial, .final_gradient = !initial};
      SCOPED_TRACE(c.str());
      const MemoryTensors in = make_tensors(c);
      expect_close(evaluate(c, in), evaluate_reference(c, in), kFp64Chunked);
      if (config.orthogonalise) continue;
      const MemoryTensors single = rounded(in, DType::f32);
      expect_close(evaluate(c, single), evaluate_reference(c, rounded(single, DType::f64)), kFp32);
    }
  }
}

// Orthogonalisation magnifies rounding. fp32 is as close to fp64 as the tolerances ask, or as fp64 is to itself when
// its inputs move by a few units of fp32 rounding.
void expect_single_precision_as_good_as_its_inputs(
    const std::function<MemoryResult(const MemoryCase&, const MemoryTensors&)>& evaluate_single) {
  for (const FastWeightConfig& config : all_configs(32)) {
    if (!config.orthogonalise) continue;
    const MemoryCase c{.lengths = {130, 70}, .config = config, .d_m = 8, .d_h = 12, .initial_state = true};
    SCOPED_TRACE(c.str());
    const MemoryTensors single = rounded(make_tensors(c), DType::f32), exact = rounded(single, DType::f64);
    MemoryTensors moved = cloned(exact);
    std::uint64_t seed = 500;
    for (const Field& field : moved.fields()) {
      if (!field.tensor->defined()) continue;
      const Tensor& t = *field.tensor;
      const Tensor noise = normal(t.shape(), ++seed, 4.0 * 0x1p-24);
      for (std::int64_t i = 0; i < t.numel(); ++i) t.data<double>()[i] *= 1.0 + noise.data<double>()[i];
    }
    const MemoryResult expected = evaluate(c, exact), nearby = evaluate(c, moved), got = evaluate_single(c, single);
    std::vector<Distance> conditions;
    for_each_pair(nearby, expected,
                  [&](const Field& a, const Field& b) { conditions.push_back(distance(*a.tensor, *b.tensor)); });
    std::size_t i = 0;
    for_each_pair(got, expected, [&](const Field& a, const Field& b) {
      const Distance& condition = conditions[i++];
      const double rel_f = a.role == Role::gradient ? kFp32.backward : kFp32.forward;
      EXPECT_TRUE(close(*a.tensor, *b.tensor, std::max(condition.rel_f, rel_f), std::max(condition.rel_max, kFp32.max)))
          << a.name;
    });
  }
}
TEST(FastWeights, SinglePrecisionIsAsGoodAsItsInputsWhenOrthogonalised) {
  expect_single_precision_as_good_as_its_inputs(
      [](const MemoryCase& c, const MemoryTensors& x) { return evaluate(c, x); });
}
TEST(FastWeightsGpu, SinglePrecisionIsAsGoodAsItsInputsWhenOrthogonalised) {
  WEFT_NEEDS_GPU();
  expect_single_precision_as_good_as_its_inputs([](const MemoryCase& c, const MemoryTensors& x) {
    const OnGpu gpu;
    return evaluate(c, x);
  });
}

// Chunks of several blocks of rows, chains with checkpoints (more than 32 writes), chunks of one token, and widths that
// differ.
TEST(FastWeights, EqualsTheDefinitionForLongChainsAndWideChunks) {
  const FastWeightConfig plain{.chunk = 300}, ttt{.chunk = 1, .loss = InnerLoss::l2, .norm = NormMode::none};
  FastWeightConfig detached = plain;
  detached.detach_norm = true;
  for (const MemoryCase& c : {MemoryCase{.lengths = {650}, .config = plain, .H = 1},
                              MemoryCase{.lengths = {650, 300}, .config = detached, .H = 1, .forget = false},
                              MemoryCase{.lengths = {100, 33, 32, 7}, .config = ttt, .H = 2, .rate = 0.02},
                              MemoryCase{.lengths = {1000},
                              .config = {.chunk = 20, .norm = NormMode::post},
                              .H = 1,
                              .d_m = 3,
                              .d_h = 8,
                              .momentum = false,
                              .initial_state = true},
                              MemoryCase{.lengths = {70},
                              .config = {.chunk = 32, .norm = NormMode::pre},
                              .H = 1,
                              .d_m = 48,
                              .d_h = 24,
                              .final_gradient = false}}) {
    SCOPED_TRACE(c.str());
    const MemoryTensors in = make_tensors(c);
    expect_close(evaluate(c, in), evaluate_reference(c, in), kFp64Chunked);
  }
}

TEST(FastWeights, RefusesForeignShapes) {
  const MemoryCase c{.lengths = {4}, .config = {.chunk = 4}};
  const MemoryTensors in = make_tensors(c);
  Tape tape(heap_allocator(), Tape::Mode::inference);
  const auto with = [&](auto&& change) {
    FastWeightInputs x = constants(in);
    change(x);
    return fast_weight_memory(tape, x, documents_of(c), c.config);
  };
  EXPECT_NO_THROW(with([](FastWeightInputs&) {}));
  EXPECT_THROW(with([](FastWeightInputs& x) { x.k = Tape::constant(normal({4, 2, 6}, 1)); }), Error);
  EXPECT_THROW(with([](FastWeightInputs& x) { x.eta = Tape::constant(normal({4, 2}, 1)); }), Error);
  EXPECT_THROW(with([](FastWeightInputs& x) { x.lambda = Tape::constant(normal({4, 2, 1}, 1)); }), Error);
  EXPECT_THROW(with([](FastWeightInputs& x) { x.w1 = x.w0; }), Error);
  EXPECT_THROW(with([](FastWeightInputs& x) { x.w2 = Tape::constant(cast(x.w2.value, DType::f32)); }), Error);
  EXPECT_THROW(fast_weight_memory(tape, constants(in), Documents::single(5), c.config), Error);
}

}  // namespace
}  // namespace weft
