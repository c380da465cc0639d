// Values and gradients: the oracle against finite differences, the chunked kernels against the oracle, closed forms.
#include <cmath>

#include "modules/families/gated_linear/gated_linear_test_cases.h"
#include "tests/support/derivative.h"
#include "tests/support/op_check.h"

namespace weft {
namespace {

using namespace testing;

TEST(GatedLinearOracle, AgreesWithFiniteDifferences) {
  for (const DecayKind kind : kAllKinds) {
    const RecurrenceCase c{.lengths = {7, 0, 4}, .kind = kind};
    SCOPED_TRACE(c.str());
    const RecurrenceInputs in = make_inputs(c);
    const RecurrenceResult r = evaluate_reference(c, in);
    const auto loss = [&] {
      const RecurrenceResult at = evaluate_reference(c, in);
      return inner(at.o, in.d_o) + inner(at.st, in.dst);
    };
    const auto check = [&](const Tensor& x, const Tensor& gradient, const char* name) {
      EXPECT_GT(expect_derivative(x, gradient, loss, name), 0.0) << name;
    };
    check(in.q, r.dq, "q");
    check(in.k, r.dk, "k");
    check(in.v, r.dv, "v");
    check(in.s0, r.ds0, "S0");
    if (r.dg.defined()) check(in.g, r.dg, "g");
  }
}

TEST(GatedLinear, PassesTheOperationCheck) {
  for (const DecayKind kind : kAllKinds) {
    const RecurrenceCase c{.lengths = {19, 3}, .kind = kind, .plan = {.chunk = 8}};
    const RecurrenceInputs in = make_inputs(c);
    const bool trained = kind != DecayKind::constant;
    OpCase op{
        .name = c.str(), .inputs = {in.q, in.k, in.v, in.s0}, .function = [&](Tape& tape, std::span<const Var> x) {
          const Var g = trained ? x[4] : Tape::constant(cast(in.g, x[0].dtype()));
          const auto [o, state] = gated_linear(tape, x[0], x[1], x[2], g, x[3], documents_of(c), c.scale, c.plan);
          return std::vector{o, state};
        }};
    if (trained) op.inputs.push_back(in.g);
    check_op(op);
  }
}

TEST(GatedLinear, ChunkedEqualsTheRecurrence) {
  const std::vector<std::int32_t> lengths{0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 1000};
  for (const DecayKind kind : kAllKinds) {
    std::vector<RecurrenceCase> cases;
    for (const std::int32_t n : lengths) cases.push_back({.lengths = {n}, .kind = kind});
    for (const bool s0 : {false, true}) {
      for (const bool dst : {false, true}) {
        cases.push_back({.lengths = lengths, .kind = kind, .initial_state = s0, .final_gradient = dst});
      }
    }
    for (const std::int64_t chunk : {1, 16, 100, 128, 256}) {
      cases.push_back({.lengths = {300, 0, 33}, .kind = kind, .H = 1, .d_k = 8, .d_v = 20, .plan = {.chunk = chunk}});
    }
    cases.push_back({.lengths = {200}, .kind = kind, .H = 3, .d_k = 64, .d_v = 96, .scale = 0.125});
    cases.push_back({.lengths = {200}, .kind = kind, .H = 3, .d_k = 1, .d_v = 1});
    for (const RecurrenceCase& c : cases) {
      SCOPED_TRACE(c.str());
      expect_the_recurrence(c, make_inputs(c));
    }
  }
}

TEST(GatedLinear, HoldsItsToleranceForSlowFastAndMixedGates) {
  for (const DecayKind kind : kAllKinds) {
    for (const double gate : {1e-4, 0.02, 2.5, 20.0, 400.0}) {
      // At the fastest gates what is left of an initial state is below the range of fp32.
      const RecurrenceCase c{
          .lengths = {500}, .kind = kind, .d_k = 16, .d_v = 8, .initial_state = gate < 100.0, .gate = gate};
      SCOPED_TRACE(fmt::format("{} gate {}", c.str(), gate));
      const RecurrenceInputs in = rounded(make_inputs(c), DType::f32);
      expect_close(evaluate(c, in), evaluate_reference(c, rounded(in, DType::f64)), kFp32);
    }
    if (kind == DecayKind::constant) continue;
    // Mostly slow, now and then a jump by which everything is forgotten: sums of g are large, differences small.
    for (const double jump : {-3000.0, -1e30}) {
      const RecurrenceCase c{.lengths = {500}, .kind = kind, .d_k = 16, .d_v = 8, .gate = 0.05};
      SCOPED_TRACE(fmt::format("{} with jumps of {}", c.str(), jump));
      RecurrenceInputs in = make_inputs(c);
      for (std::int64_t i = 0; i < in.g.numel(); i += 97) in.g.data<double>()[i] = jump;
      in = rounded(in, DType::f32);
      expect_close(evaluate(c, in), evaluate_reference(c, rounded(in, DType::f64)), kFp32);
    }
  }
}

// Every chunk of a slow head, and every decoded token, multiplies the state by the same number close to 1, whose
// rounding must not add up.
TEST(GatedLinear, SlowDecaysDoNotDriftInALongDocument) {
  for (const DecayKind kind : kAllKinds) {
    const std::int32_t T = 65536;
    const RecurrenceCase c{.lengths = {T}, .kind = kind, .H = 4, .d_k = 2, .d_v = 2, .final_gradient = false};
    SCOPED_TRACE(c.str());
    RecurrenceInputs in = make_inputs(c);
    const std::int64_t per_head = kind == DecayKind::vector ? c.d_k : 1;
    for (std::int64_t i = 0; i < in.g.numel(); ++i) {
      in.g.data<double>()[i] = -1e-5 / static_cast<double>(1 + i / per_head % c.H);
    }
    // Only the first tokens write, so that nothing hides how their trace fades.
    in.v.rows(64, T).fill_zero();
    in = rounded(in, DType::f32);
    const RecurrenceInputs exact = rounded(in, DType::f64);
    const RecurrenceResult expected = evaluate(c, exact);
    EXPECT_TRUE(close(evaluate(c, in).st, expected.st, kFp32.forward, kFp32.max));

    if (kind != DecayKind::constant) continue;
    Tape tape(heap_allocator(), Tape::Mode::inference);
    const Tensor state = cast(in.s0, DType::f32);
    for (std::int64_t t = 0; t < T; ++t) {
      gated_linear_decode(tape, in.q.rows(t, t + 1), in.k.rows(t, t + 1), in.v.rows(t, t + 1), in.g, state, c.scale);
    }
    // Each token's own rounding of the state is left; that of the factor alone would be 1e-3.
    EXPECT_TRUE(close(state, expected.st, 1e-4, 1e-4));
  }
}

TEST(GatedLinear, EqualChannelsAreTheScalarKindAndEqualTokensTheConstantOne) {
  const RecurrenceCase constant{.lengths = {70, 9}, .kind = DecayKind::constant};
  const RecurrenceInputs in = make_inputs(constant);
  const std::int64_t T = constant.tokens();
  RecurrenceCase scalar = constant, vector = constant;
  scalar.kind = DecayKind::scalar;
  vector.kind = DecayKind::vector;
  RecurrenceInputs scalar_in = in, vector_in = in;
  scalar_in.g = Tensor::zeros({T, constant.H}, DType::f64);
  vector_in.g = Tensor::zeros({T, constant.H, constant.d_k}, DType::f64);
  for (std::int64_t i = 0; i < scalar_in.g.numel(); ++i) {
    scalar_in.g.data<double>()[i] = in.g.data<double>()[i % constant.H];
    for (std::int64_t x = 0; x < constant.d_k; ++x) {
      vector_in.g.data<double>()[i * constant.d_k + x] = in.g.data<double>()[i % constant.H];
    }
  }
  const RecurrenceResult from_constant = evaluate(constant, in);
  RecurrenceResult from_scalar = evaluate(scalar, scalar_in);
  RecurrenceResult from_vector = evaluate(vector, vector_in);
  const Tensor summed = Tensor::zeros(from_scalar.dg.shape(), DType::f64);
  for (std::int64_t i = 0; i < from_vector.dg.numel(); ++i) {
    summed.data<double>()[i / constant.d_k] += from_vector.dg.data<double>()[i];
  }
  from_vector.dg = summed;
  expect_close(from_vector, from_scalar, kFp64Chunked);
  from_scalar.dg = {};
  expect_close(from_scalar, from_constant, kFp64Chunked);
}

TEST(GatedLinear, OneAndTwoTokensByHand) {
  for (const DecayKind kind : kAllKinds) {
    const RecurrenceCase c{.lengths = {2}, .kind = kind, .H = 1, .d_k = 2, .d_v = 1, .initial_state = false};
    RecurrenceInputs in = make_inputs(c);
    const double g = -0.4;
    for (double& x : in.g.span<double>()) x = g;
    const double *q = in.q.data<double>(), *k = in.k.data<double>(), *v = in.v.data<double>();
    const Tensor o = evaluate(c, in).o;
    const auto qk = [&](int i, int j) { return q[2 * i] * k[2 * j] + q[2 * i + 1] * k[2 * j + 1]; };
    EXPECT_NEAR(o.data<double>()[0], c.scale * qk(0, 0) * v[0], 1e-14);
    // The write of a token is not decayed before its own read.
    EXPECT_NEAR(o.data<double>()[1], c.scale * (std::exp(g) * qk(1, 0) * v[0] + qk(1, 1) * v[1]), 1e-14);
  }
}

TEST(GatedLinear, WithoutDecayItIsCausalLinearAttentionAndWithInfiniteDecayTheDiagonal) {
  for (const DecayKind kind : kAllKinds) {
    for (const double g : {0.0, -1e4, -1e30}) {
      for (const DType dtype : {DType::f64, DType::f32}) {
        const RecurrenceCase c{.lengths = {150}, .kind = kind, .H = 1, .initial_state = false};
        SCOPED_TRACE(fmt::format("{} g {}", c.str(), g));
        RecurrenceInputs in = rounded(make_inputs(c), dtype);
        in.g.copy_from(uniform(in.g.shape(), 1, g, g));
        const RecurrenceResult r = evaluate(c, in);
        const RecurrenceInputs exact = rounded(in, DType::f64);
        const Tensor expected = Tensor::zeros(in.v.shape(), DType::f64);
        for (std::int64_t i = 0; i < 150; ++i) {
          for (std::int64_t j = g == 0.0 ? 0 : i; j <= i; ++j) {
            double score = 0.0;
            for (std::int64_t x = 0; x < c.d_k; ++x) {
              score += exact.q.data<double>()[i * c.d_k + x] * exact.k.data<double>()[j * c.d_k + x];
            }
            for (std::int64_t y = 0; y < c.d_v; ++y) {
              expected.data<double>()[i * c.d_v + y] += c.scale * score * exact.v.data<double>()[j * c.d_v + y];
            }
          }
        }
        const Tolerance& tolerance = dtype == DType::f64 ? kFp64Chunked : kFp32;
        EXPECT_TRUE(close(r.o, expected, tolerance.forward, tolerance.max));
        for (const Tensor* t : {&r.st, &r.dq, &r.dk, &r.dv, &r.dg}) {
          if (!t->defined()) continue;
          const Tensor values = cast(*t, DType::f64);
          for (const double x : values.span<double>()) ASSERT_TRUE(std::isfinite(x));
        }
      }
    }
  }
}

// Scaling e^{g_t} multiplies whatever crosses t: dg_t = sum_{j >= t} (q dq - k dk)_j + rowsum(S_T * dS_T).
TEST(GatedLinear, GateGradientEqualsItsGlobalForm) {
  for (const DecayKind kind : {DecayKind::scalar, DecayKind::vector}) {
    const RecurrenceCase c{.lengths = {130}, .kind = kind, .H = 1};
    const RecurrenceInputs in = make_inputs(c);
    const RecurrenceResult r = evaluate(c, in);
    const Tensor expected = Tensor::zeros(in.g.shape(), DType::f64);
    for (std::int64_t x = 0; x < c.d_k; ++x) {
      double sum = 0.0;
      for (std::int64_t y = 0; y < c.d_v; ++y) {
        sum += r.st.data<double>()[x * c.d_v + y] * in.dst.data<double>()[x * c.d_v + y];
      }
      for (std::int64_t t = c.tokens() - 1; t >= 0; --t) {
        const auto i = t * c.d_k + x;
        sum += in.q.data<double>()[i] * r.dq.data<double>()[i] - in.k.data<double>()[i] * r.dk.data<double>()[i];
        expected.data<double>()[kind == DecayKind::vector ? i : t] += sum;  // a scalar decay: over channels
      }
    }
    EXPECT_TRUE(close(r.dg, expected, 1e-11, 1e-10)) << c.str();
  }
}

TEST(GatedLinear, RefusesForeignShapes) {
  Tape tape(heap_allocator());
  const DocumentsPtr documents = Documents::single(4);
  const Var q = tape.leaf(normal({4, 2, 8}, 1)), v = tape.leaf(normal({4, 2, 6}, 2));
  const Var g = tape.leaf(normal({4, 2}, 3));
  EXPECT_THROW(gated_linear(tape, q, tape.leaf(normal({4, 2, 7}, 1)), v, g, {}, documents, 1.0), Error);
  EXPECT_THROW(gated_linear(tape, q, q, tape.leaf(normal({4, 1, 6}, 1)), g, {}, documents, 1.0), Error);
  EXPECT_THROW(gated_linear(tape, q, q, v, tape.leaf(normal({4, 2, 6}, 1)), {}, documents, 1.0), Error);
  EXPECT_THROW(gated_linear(tape, q, q, v, g, tape.leaf(normal({1, 2, 6, 8}, 1)), documents, 1.0), Error);
  EXPECT_THROW(gated_linear(tape, q, q, v, g, {}, Documents::single(5), 1.0), Error);
  EXPECT_THROW(gated_linear(tape, q, q, v, tape.leaf(normal({2}, 1)), {}, documents, 1.0), Error);  // not trained
}

}  // namespace
}  // namespace weft
