#include "autograd/ops/decay_gate/decay_gate.h"

#include <cmath>
#include <omp.h>

#include "tests/support/op_check.h"

namespace weft {
namespace {

using testing::normal;
using testing::OpCase;

using Function = Var (*)(Tape&, const Var&, const Var&, const Var&);
constexpr Function kFunctions[] = {&softplus_decay, [](Tape& tape, const Var& f, const Var& a_log, const Var& dt_bias) {
                                     return bounded_decay(tape, f, a_log, dt_bias, -5.0);
                                   }};

OP_TEST(DecayGate, GradientsAndPrecision) {
  for (const Function function : kFunctions) {
    for (const Shape& f : {Shape{0, 2, 3}, Shape{1, 1, 1}, Shape{7, 3}, Shape{65, 2, 5}, Shape{1, 4, 64},
                           Shape{129, 3, 17}, Shape{1000, 2}, Shape{300, 4, 64}}) {
      const std::int64_t H = f[1], W = f.rank() == 3 ? f[2] : 1;
      check_op(OpCase{
          .name = f.str(),
          .inputs = {normal(f, 1), testing::vector_input(normal({H}, 2)), testing::vector_input(normal({H * W}, 3))},
          .function = [&](Tape& tape, std::span<const Var> in) {
            return std::vector{function(tape, in[0], in[1], in[2])};
          }});
    }
  }
}

// Gate inputs far beyond where an exponential overflows: g saturates, no gradient is lost to 0 * infinity.
TEST(DecayGate, ValuesAndSlopesFarOut) {
  const std::vector<double> points{-1000, -90, -20, -1, 0, 1, 20, 90, 1000};
  const auto n = static_cast<std::int64_t>(points.size());
  const double rate = 3.0, shift = 0.25;
  const auto softplus = [](double z) { return std::max(z, 0.0) + std::log1p(std::exp(-std::abs(z))); };
  const auto sigma = [](double z) { return 1.0 / (1.0 + std::exp(-z)); };
  for (const DType dtype : {DType::f64, DType::f32}) {
    const auto tensor = [&](const Shape& shape, const std::vector<double>& values) {
      return testing::cast(Tensor::from(shape, values), dtype);
    };
    for (const bool bounded : {false, true}) {
      Tape tape(heap_allocator(Hygiene::hostile));
      const Var f = tape.leaf(tensor({n, 1}, points));
      const Var a_log = tape.leaf(tensor({1}, {std::log(rate)})), dt_bias = tape.leaf(tensor({1}, {shift}));
      const Var g = kFunctions[bounded ? 1 : 0](tape, f, a_log, dt_bias);
      tape.backward(g, tensor({n, 1}, std::vector<double>(points.size(), 1.0)));
      const Tensor values = testing::cast(g.value, DType::f64), slopes = testing::cast(tape.gradient(f), DType::f64);
      const double tolerance = dtype == DType::f64 ? 1e-13 : 1e-6;
      double d_rate = 0.0, d_shift = 0.0;
      for (std::size_t i = 0; i < points.size(); ++i) {
        const double z = points[i] + shift;
        const double value = bounded ? -5.0 * sigma(rate * z) : -rate * softplus(z);
        const double slope = bounded ? -5.0 * rate * sigma(rate * z) * sigma(-rate * z) : -rate * sigma(z);
        EXPECT_NEAR(values.data<double>()[i], value, tolerance * std::abs(value) + 1e-36) << "f " << points[i];
        EXPECT_NEAR(slopes.data<double>()[i], slope, tolerance * std::max(std::abs(slope), 1e-3)) << "f " << points[i];
        d_rate += bounded ? z * slope : value;
        d_shift += slope;
      }
      EXPECT_NEAR(testing::cast(tape.gradient(a_log), DType::f64).data<double>()[0], d_rate,
                  tolerance * std::abs(d_rate));
      EXPECT_NEAR(testing::cast(tape.gradient(dt_bias), DType::f64).data<double>()[0], d_shift,
                  tolerance * std::abs(d_shift));
    }
  }
}

TEST(DecayGate, GradientsDoNotDependOnThreads) {
  const int threads = omp_get_max_threads();
  std::vector<testing::Evaluation> results;
  for (const int count : {1, 2, 3}) {
    omp_set_num_threads(count);
    results.push_back(evaluate(OpCase{.name = "threads",
                                      .inputs = {normal({3000, 2, 9}, 1), normal({2}, 2), normal({18}, 3)},
                                      .function =
                                          [](Tape& tape, std::span<const Var> in) {
                                            return std::vector{softplus_decay(tape, in[0], in[1], in[2])};
                                          }},
                               DType::f32));
  }
  omp_set_num_threads(threads);
  for (const testing::Evaluation& other : results) {
    for (std::size_t i = 0; i < other.gradients.size(); ++i) {
      EXPECT_TRUE(testing::bitwise_equal(other.gradients[i], results[0].gradients[i])) << "input " << i;
    }
  }
}

TEST(DecayGate, RefusesForeignShapes) {
  Tape tape(heap_allocator());
  const Var f = tape.leaf(normal({4, 2, 3}, 1)), a_log = tape.leaf(normal({2}, 2)), bias = tape.leaf(normal({6}, 3));
  EXPECT_THROW(softplus_decay(tape, f, bias, bias), Error);
  EXPECT_THROW(softplus_decay(tape, f, a_log, a_log), Error);
  EXPECT_THROW(softplus_decay(tape, tape.leaf(normal({4}, 1)), a_log, bias), Error);
  EXPECT_THROW(bounded_decay(tape, f, a_log, bias, 0.0), Error);
}

}  // namespace
}  // namespace weft
