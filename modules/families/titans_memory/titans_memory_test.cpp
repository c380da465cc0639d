// Values and gradients: the oracle against finite differences, the chunked form against the oracle, special cases.
#include <cmath>

#include "modules/families/gated_linear/gated_linear.h"
#include "modules/families/titans_memory/titans_memory_test_cases.h"
#include "tests/support/derivative.h"
#include "tests/support/op_check.h"

namespace weft {
namespace {

using namespace testing;

TEST(TitansMemoryOracle, AgreesWithFiniteDifferences) {
  for (const std::int64_t m : {0, 4}) {
    for (const bool state : {false, true}) {
      TitansCase c{.lengths = {7, 0, 5}, .m = m, .C = 4};
      if (state) c.phase = {2, 1, 0};
      SCOPED_TRACE(c.str());
      TitansData data = make_data(c);
      TitansResult r = evaluate_reference(c, data);
      const auto loss = [&] {
        const TitansResult at = evaluate_reference(c, data);
        return inner(at.o, data.d_o) + inner(at.final_state, data.dfinal);
      };
      const Fields inputs = data.x.fields(), gradients = r.d.fields();
      for (std::size_t k = 0; k < inputs.size(); ++k) {
        const Tensor &x = *inputs[k].tensor, &gradient = *gradients[k].tensor;
        const bool unused = state && (k == 6 || k == 7);  // the weights, when documents continue
        if (!x.defined() || unused) continue;
        EXPECT_GT(expect_derivative(x, gradient, loss, inputs[k].name, 1 + x.numel() / 60), 0.0) << inputs[k].name;
      }
    }
  }
}

OP_TEST(TitansMemory, PassesTheOperationCheck) {
  for (const std::int64_t m : {0, 4}) {
    const TitansCase c{.lengths = {11, 3}, .m = m, .C = 4};
    const TitansData data = make_data(c);
    OpCase op{.name = c.str(),
              .inputs = {data.x.q, data.x.k, data.x.v, vector_input(data.x.keep), vector_input(data.x.momentum),
                         vector_input(data.x.rate), weight(data.x.w2)},
              .function =
                  [&](Tape& tape, std::span<const Var> x) {
                    const std::vector<Var> all{x[0], x[1], x[2], x[3], x[4], x[5], m > 0 ? x[7] : Var{}, x[6], {}};
                    const TitansOutput out = titans_memory(tape, c, all, Documents::from_lengths(c.lengths));
                    return std::vector{out.o, out.final_state};
                  },
              .bf16 = kBf16TestTimeTraining};
    if (m > 0) op.inputs.push_back(weight(data.x.w1));
    check_op(op);
  }
}

OP_TEST(TitansRead, PassesTheOperationCheck) {
  const DocumentsPtr documents = Documents::from_lengths(std::vector<std::int32_t>{4, 0, 70});
  const Tensor q = normal({74, 2, 5}, 1);
  for (const std::int64_t m : {0, 4}) {
    const Tensor w1 = normal({2, 5, 4}, 2), w2 = normal({2, m > 0 ? m : 5, 3}, 3);
    const std::int64_t P = titans_memory_size(5, m, 3);
    OpCase weights{.name = fmt::format("weights, m {}", m),
                   .inputs = {q, weight(w2)},
                   .function =
                       [&](Tape& tape, std::span<const Var> x) {
                         return std::vector{titans_read(tape, x[0], {m > 0 ? x[2] : Var{}, x[1]}, {}, documents)};
                       },
                   .bf16 = kBf16TestTimeTraining};
    if (m > 0) weights.inputs.push_back(weight(w1));
    check_op(weights);
    for (const Shape& state : {Shape{3, 2, P}, Shape{3, 2, 3, P}}) {
      check_op({.name = state.str(),
                .inputs = {q, vector_input(normal(state, 4))},
                .function =
                    [&](Tape& tape, std::span<const Var> x) {
                      const Var shape = m > 0 ? Tape::constant(tape.here(cast(w1, x[0].dtype()))) : Var{};
                      const TitansWeights sizes{shape, Tape::constant(tape.here(cast(w2, x[0].dtype())))};
                      return std::vector{titans_read(tape, x[0], sizes, x[1], documents)};
                    },
                .bf16 = kBf16TestTimeTraining});
    }
  }
}

// Without learning, what is read in passing is what titans_read reads.
TEST(TitansRead, IsTheMemoryWithoutItsSteps) {
  for (const std::int64_t m : {0, 4}) {
    const TitansCase c{.lengths = {70, 3}, .m = m};
    const TitansData data = make_data(c);
    data.x.rate.fill_zero();
    for (double& keep : data.x.keep.span<double>()) keep = 1.0;
    Tape tape(heap_allocator(Hygiene::hostile), Tape::Mode::inference);
    const TitansWeights weights{m > 0 ? Tape::constant(data.x.w1) : Var{}, Tape::constant(data.x.w2)};
    const Var o = titans_read(tape, Tape::constant(data.x.q), weights, {}, Documents::from_lengths(c.lengths));
    EXPECT_TRUE(close(o.value, evaluate(c, data).o, 1e-13, 1e-12));
  }
}

TEST(TitansMemory, ChunkedFormEqualsTheRecurrence) {
  const std::vector<std::int32_t> lengths{0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 1000};
  const std::vector<std::int32_t> phases{3, 15, 1, 7, 0, 8, 15, 2, 9, 0, 4, 11, 5};
  for (const std::int64_t m : {0, 7}) {
    std::vector<TitansCase> cases;
    for (const bool state : {false, true}) {
      for (const bool final_gradient : {false, true}) {
        cases.push_back({.lengths = lengths, .m = m, .final_gradient = final_gradient});
        if (state) cases.back().phase = phases;
      }
    }
    for (const std::int64_t C : {1, 2, 5, 64, 200}) {
      cases.push_back({.lengths = {100, 0, 33}, .m = m, .C = C, .rate = 0.05});
    }
    cases.push_back({.lengths = {150}, .m = 3 * m, .H = 3, .d_k = 32, .d_v = 40, .C = 64, .rate = 0.05});
    for (const TitansCase& c : cases) {
      SCOPED_TRACE(c.str());
      expect_the_recurrence(c, make_data(c));
    }
  }
}

// Gates that shut: nothing divides by what a chunk has forgotten.
TEST(TitansMemory, ForgetsEverythingWithoutLosingItsGradients) {
  const TitansCase c{.lengths = {70}};
  const TitansData data = make_data(c);
  for (std::int64_t i = 0; i < data.x.keep.numel(); i += 5) data.x.keep.data<double>()[i] = 0.0;
  for (std::int64_t i = 1; i < data.x.keep.numel(); i += 7) data.x.momentum.data<double>()[i] = 0.0;
  expect_the_recurrence(c, data);
}

// In one chunk that starts at zero, without momentum, the gradient is -k^T v: linear attention with decay and values
// theta v.
TEST(TitansMemory, IsGatedLinearAttentionInItsFirstChunk) {
  const TitansCase c{.lengths = {40}, .C = 64, .final_gradient = false};
  const TitansData data = make_data(c);
  data.x.momentum.fill_zero();
  data.x.w2.fill_zero();
  const Tensor values = cast(data.x.v, DType::f64), decay = cast(data.x.keep, DType::f64);
  for (std::int64_t i = 0; i < values.numel(); ++i) {
    values.data<double>()[i] *= data.x.rate.data<double>()[i / c.d_v];
  }
  for (double& g : decay.span<double>()) g = std::log(g);
  Tape tape(heap_allocator(Hygiene::hostile), Tape::Mode::inference);
  const auto expected = gated_linear(tape, Tape::constant(data.x.q), Tape::constant(data.x.k), Tape::constant(values),
                                     Tape::constant(decay), {}, Documents::single(40), 1.0);
  EXPECT_TRUE(close(evaluate(c, data).o, expected.o.value, 1e-12, 1e-11));
}

// One token a chunk, no momentum, nothing forgotten: the delta rule.
TEST(TitansMemory, IsTheDeltaRuleWithChunksOfOneToken) {
  const TitansCase c{.lengths = {6}, .H = 1, .d_k = 3, .d_v = 2, .C = 1, .final_gradient = false, .rate = 0.9};
  const TitansData data = make_data(c);
  data.x.momentum.fill_zero();
  for (double& keep : data.x.keep.span<double>()) keep = 1.0;
  const Tensor o = evaluate(c, data).o;
  std::vector<double> S(data.x.w2.data<double>(), data.x.w2.data<double>() + 6);
  for (std::int64_t t = 0; t < 6; ++t) {
    const double *q = data.x.q.data<double>() + t * 3, *k = data.x.k.data<double>() + t * 3;
    const double beta = data.x.rate.data<double>()[t];
    for (std::size_t y = 0; y < 2; ++y) {
      const double v = data.x.v.data<double>()[t * 2 + static_cast<std::int64_t>(y)];
      const double error = v - k[0] * S[y] - k[1] * S[2 + y] - k[2] * S[4 + y];
      for (std::size_t x = 0; x < 3; ++x) S[x * 2 + y] += beta * k[x] * error;
      const double read = q[0] * S[y] + q[1] * S[2 + y] + q[2] * S[4 + y];
      EXPECT_NEAR(o.data<double>()[t * 2 + static_cast<std::int64_t>(y)], read, 1e-14);
    }
  }
}

TEST(TitansMemory, RefusesForeignShapes) {
  const TitansCase c{.lengths = {4}};
  TitansData data = make_data(c);
  const Fields inputs = data.x.fields();
  for (std::size_t k = 1; k < 8; ++k) {
    Tape tape(heap_allocator());
    std::vector<Var> x;
    for (const Field& field : inputs) x.push_back(Var{*field.tensor});
    x[k] = Var{normal({3, 2, 6}, 1)};
    EXPECT_THROW(titans_memory(tape, c, x, Documents::single(4)), Error) << inputs[k].name;
  }
  Tape tape(heap_allocator());
  std::vector<Var> x;
  for (const Field& field : inputs) x.push_back(Var{*field.tensor});
  EXPECT_THROW(titans_memory(tape, c, x, Documents::single(5)), Error);
  EXPECT_THROW(titans_read(tape, x[0], {{}, x[7]}, Var{normal({1, 2, 3, 4}, 1)}, Documents::single(4)), Error);
  TitansCase late = c;
  late.phase = {16};
  x[8] = Var{normal(c.state_shape(), 1)};
  EXPECT_THROW(titans_memory(tape, late, x, Documents::single(4)), Error);
}

}  // namespace
}  // namespace weft
