// Values and gradients: the oracle against finite differences, the dual form against the primal oracle.
#include <cmath>

#include "modules/families/ttt/ttt_memory_test_cases.h"
#include "tests/support/derivative.h"
#include "tests/support/op_check.h"

namespace weft {
namespace {

using namespace testing;

TEST(TttMemoryOracle, AgreesWithFiniteDifferences) {
  for (const std::int64_t m : {0, 5}) {
    for (const bool state : {false, true}) {
      TttCase c{.lengths = {7, 0, 5}, .m = m, .d = 4, .b = 4};
      if (state) c.phase = {2, 1, 3};
      SCOPED_TRACE(c.str());
      TttData data = make_data(c);
      TttResult r = evaluate_reference(c, data);
      const auto loss = [&] {
        const TttResult at = evaluate_reference(c, data);
        return inner(at.o, data.d_o) + inner(at.final_state, data.dfinal);
      };
      const Fields inputs = data.x.fields(), gradients = r.d.fields();
      for (std::size_t k = 0; k < inputs.size(); ++k) {
        const Tensor &x = *inputs[k].tensor, &gradient = *gradients[k].tensor;
        const bool unused = state && k >= 7 && k <= 10;  // the weights, when documents continue
        if (!x.defined() || unused) continue;
        EXPECT_GT(expect_derivative(x, gradient, loss, inputs[k].name, 1 + x.numel() / 40), 0.0) << inputs[k].name;
      }
    }
  }
}

OP_TEST(TttMemory, PassesTheOperationCheck) {
  for (const std::int64_t m : {0, 5}) {
    const TttCase c{.lengths = {11, 3}, .m = m, .d = 4, .b = 4};
    TttData data = make_data(c);
    OpCase op{
        .name = c.str(),
        .inputs = {},
        .function =
            [&](Tape& tape, std::span<const Var> x) {
              std::vector<Var> all;
              for (const Field& field : data.x.fields()) {
                all.push_back(field.tensor->defined() ? x[all.size() - (m == 0 && all.size() > 7 ? 2 : 0)] : Var{});
              }
              const TttOutput out = ttt_memory(tape, c, all, Documents::from_lengths(c.lengths));
              return std::vector{out.o, out.final_state};
            },
        .bf16 = kBf16TestTimeTraining};
    const TttTensors& x = data.x;
    op.inputs = {
        x.q, x.k, x.v, vector_input(x.rate), vector_input(x.offset), vector_input(x.gamma), vector_input(x.beta)};
    for (const Tensor& t : {x.w1, x.b1, x.w2, x.b2}) {
      if (t.defined()) op.inputs.push_back(weight(t));
    }
    check_op(op);
  }
}

TEST(TttMemory, DualFormEqualsThePrimalOne) {
  const std::vector<std::int32_t> lengths{0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 1000};
  const std::vector<std::int32_t> phases{3, 15, 1, 7, 0, 8, 15, 2, 9, 0, 4, 11, 5};
  for (const std::int64_t m : {0, 9}) {
    std::vector<TttCase> cases;
    for (const bool state : {false, true}) {
      for (const bool final_gradient : {false, true}) {
        cases.push_back({.lengths = lengths, .m = m, .final_gradient = final_gradient});
        if (state) cases.back().phase = phases;
      }
    }
    for (const std::int64_t b : {1, 2, 5, 40}) cases.push_back({.lengths = {100, 0, 33}, .m = m, .b = b});
    cases.push_back({.lengths = {50}, .m = m * 3, .H = 3, .d = 24});
    for (const TttCase& c : cases) {
      SCOPED_TRACE(c.str());
      expect_the_recurrence(c, make_data(c));
    }
  }
}

// With rates of zero the memory is a fixed network, and nothing reaches keys and values.
TEST(TttMemory, IsAFixedNetworkWithoutLearning) {
  const TttCase c{.lengths = {40}, .m = 5, .final_gradient = false};
  const TttData data = make_data(c);
  data.x.rate.fill_zero();
  const TttResult r = evaluate(c, data);
  TttCase alone = c;
  alone.lengths = std::vector<std::int32_t>(40, 1);
  const TttResult each = evaluate(alone, data);
  EXPECT_TRUE(close(r.o, each.o, 1e-14, 1e-13));
  for (const Tensor* t : {&r.d.k, &r.d.v}) {
    for (const double x : t->span<double>()) ASSERT_EQ(x, 0.0);
  }
}

TEST(TttMemory, RefusesForeignShapes) {
  const TttCase c{.lengths = {4}, .m = 5};
  TttData data = make_data(c);
  const Fields inputs = data.x.fields();
  for (std::size_t k = 1; k + 1 < inputs.size(); ++k) {
    if (k == 7 || k == 4) continue;  // these define m and b
    Tape tape(heap_allocator());
    std::vector<Var> x;
    for (const Field& field : inputs) x.push_back(Var{*field.tensor});
    x[k] = Var{normal({3, 2, 6}, 1)};
    EXPECT_THROW(ttt_memory(tape, c, x, Documents::single(4)), Error) << inputs[k].name;
  }
  Tape tape(heap_allocator());
  std::vector<Var> x;
  for (const Field& field : inputs) x.push_back(Var{*field.tensor});
  EXPECT_THROW(ttt_memory(tape, c, x, Documents::single(5)), Error);
  TttCase late = c;
  late.phase = {16};
  x[11] = Var{normal(c.state_shape(), 1)};
  EXPECT_THROW(ttt_memory(tape, late, x, Documents::single(4)), Error);
}

}  // namespace
}  // namespace weft
