// Values and gradients: the oracle against finite differences, the chunked kernels against the oracle.
#include <cmath>

#include "modules/families/delta_rule/delta_rule_test_cases.h"
#include "tests/support/derivative.h"
#include "tests/support/op_check.h"

namespace weft {
namespace {

using namespace testing;

TEST(DeltaRuleOracle, AgreesWithFiniteDifferences) {
  for (const DeltaDecay decay : kAllDecays) {
    const DeltaCase c{.lengths = {7, 0, 4}, .decay = decay, .H = 4};
    SCOPED_TRACE(c.str());
    const DeltaInputs in = make_inputs(c);
    const DeltaResult r = evaluate_reference(c, in);
    const auto loss = [&] {
      const DeltaResult at = evaluate_reference(c, in);
      return inner(at.o, in.d_o) + inner(at.st, in.dst);
    };
    const auto check = [&](const Tensor& x, const Tensor& gradient, const char* name) {
      EXPECT_GT(expect_derivative(x, gradient, loss, name), 0.0) << name;
    };
    check(in.q, r.dq, "q");
    check(in.k, r.dk, "k");
    check(in.v, r.dv, "v");
    check(in.beta, r.dbeta, "beta");
    check(in.s0, r.ds0, "S0");
    if (r.dg.defined()) check(in.g, r.dg, "g");
  }
}

OP_TEST(DeltaRule, PassesTheOperationCheck) {
  for (const DeltaDecay decay : kAllDecays) {
    const DeltaCase c{.lengths = {19, 3}, .decay = decay, .H = 4, .largest_beta = 2.0, .plan = {.chunk = 8}};
    const DeltaInputs in = make_inputs(c);
    OpCase op{.name = c.str(),
              .inputs = {in.q, in.k, in.v, vector_input(in.beta), vector_input(in.s0)},
              .function =
                  [&](Tape& tape, std::span<const Var> x) {
                    const Var g = x.size() > 5 ? x[5] : Var{};
                    const auto [o, state] =
                        delta_rule(tape, x[0], x[1], x[2], g, x[3], x[4], documents_of(c), c.scale, c.plan);
                    return std::vector{o, state};
                  },
              .bf16 = kBf16Recurrence};
    if (in.g.defined()) op.inputs.push_back(vector_input(in.g));
    check_op(op);
  }
}

TEST(DeltaRule, ChunkedEqualsTheRecurrence) {
  const std::vector<std::int32_t> lengths{0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 1000};
  for (const DeltaDecay decay : kAllDecays) {
    std::vector<DeltaCase> cases;
    for (const std::int32_t n : lengths) cases.push_back({.lengths = {n}, .decay = decay});
    for (const bool s0 : {false, true}) {
      for (const bool dst : {false, true}) {
        cases.push_back({.lengths = lengths, .decay = decay, .initial_state = s0, .final_gradient = dst});
      }
    }
    for (const std::int64_t chunk : {1, 16, 32, 100, 128}) {
      cases.push_back({.lengths = {300, 0, 33}, .decay = decay, .H = 1, .H_K = 1, .d_k = 8, .d_v = 20});
      cases.back().plan.chunk = chunk;
    }
    cases.push_back({.lengths = {200}, .decay = decay, .H = 3, .H_K = 3, .d_k = 64, .d_v = 96, .scale = 0.125});
    cases.push_back({.lengths = {150, 70}, .decay = decay, .H = 6, .H_K = 2, .d_k = 12, .d_v = 9, .largest_beta = 2.0});
    cases.push_back({.lengths = {200}, .decay = decay, .d_k = 1, .d_v = 1});
    cases.push_back({.lengths = {100}, .decay = decay, .d_k = 70, .d_v = 2});  // wider than the chunk is long
    for (const DeltaCase& c : cases) {
      SCOPED_TRACE(c.str());
      expect_the_recurrence(c, make_inputs(c));
    }
  }
}

TEST(DeltaRule, HoldsItsToleranceForSlowFastAndMixedGates) {
  for (const DeltaDecay decay : {DeltaDecay::scalar, DeltaDecay::channel}) {
    for (const double gate : {1e-4, 0.02, 2.5, 20.0, 400.0}) {
      // At the fastest gates what is left of an initial state is below the range of fp32.
      const DeltaCase c{
          .lengths = {500}, .decay = decay, .d_k = 16, .d_v = 8, .initial_state = gate < 100.0, .gate = gate};
      SCOPED_TRACE(fmt::format("{} gate {}", c.str(), gate));
      expect_the_recurrence(c, make_inputs(c));
    }
    const DeltaCase c{.lengths = {500}, .decay = decay, .d_k = 16, .d_v = 8, .gate = 0.05};
    const auto check = [&](const char* name, auto&& log_decay) {
      SCOPED_TRACE(fmt::format("{} {}", c.str(), name));
      const DeltaInputs in = make_inputs(c);
      for (std::int64_t i = 0; i < in.g.numel(); ++i) log_decay(in.g.data<double>()[i], i);
      expect_the_recurrence(c, in);
    };
    check("at the bound of the bounded gate", [](double& g, std::int64_t) { g = -5.0; });
    // Mostly slow, now and then a jump by which everything is forgotten: sums of g are large, differences small.
    for (const double jump : {-3000.0, -1e30}) {
      check("with jumps", [&](double& g, std::int64_t i) { g = i % 97 == 0 ? jump : g; });
    }
    const Tensor z = normal({c.tokens() * c.H * c.d_k}, 77);
    check("with heavy tails, from 1e-5 to 1e5",
          [&](double& g, std::int64_t i) { g = -std::exp(3.0 * z.data<double>()[i]); });
  }
}

TEST(DeltaRule, RefusesForeignShapes) {
  Tape tape(heap_allocator());
  const DocumentsPtr documents = Documents::single(4);
  const auto leaf = [&](const Shape& shape) { return tape.leaf(normal(shape, 1)); };
  const Var q = leaf({4, 2, 8}), v = leaf({4, 4, 6}), g = leaf({4, 4}), beta = leaf({4, 4});
  const auto apply = [&](const Var& k_, const Var& v_, const Var& g_, const Var& beta_, const Var& s0) {
    return delta_rule(tape, q, k_, v_, g_, beta_, s0, documents, 1.0);
  };
  EXPECT_NO_THROW(apply(q, v, g, beta, {}));
  EXPECT_THROW(apply(leaf({4, 2, 7}), v, g, beta, {}), Error);
  EXPECT_THROW(apply(q, leaf({4, 3, 6}), {}, leaf({4, 3}), {}), Error);  // 3 value heads for 2 key heads
  EXPECT_THROW(apply(q, v, leaf({4, 2}), beta, {}), Error);
  EXPECT_THROW(apply(q, v, leaf({4, 4, 6}), beta, {}), Error);
  EXPECT_THROW(apply(q, v, g, leaf({4, 2}), {}), Error);
  EXPECT_THROW(apply(q, v, g, beta, leaf({1, 4, 6, 8})), Error);
  EXPECT_THROW(delta_rule(tape, q, q, v, g, beta, {}, Documents::single(5), 1.0), Error);
}

}  // namespace
}  // namespace weft
