#include "autograd/ops/activation/activation.h"

#include <cmath>
#include <limits>

#include "tests/support/op_check.h"

namespace weft {
namespace {

using testing::normal;
using testing::OpCase;

using Function = Var (*)(Tape&, const Var&);
constexpr Function kFunctions[] = {&silu, &sigmoid, [](Tape& tape, const Var& x) { return log_sigmoid(tape, x); },
                                   [](Tape& tape, const Var& x) { return log_sigmoid(tape, x, 1.0 / 16.0); },
                                   &softplus};

OP_TEST(Activation, GradientsAndPrecision) {
  for (const Function f : kFunctions) {
    for (const Shape& x : {Shape{0}, Shape{1}, Shape{2}, Shape{15, 3}, Shape{17, 1}, Shape{63, 64}, Shape{65, 129},
                           Shape{129, 3, 5}, Shape{1000, 17}}) {
      check_op(OpCase{.name = x.str(),
                      .inputs = {normal(x, 1, 3.0)},
                      .function = [f](Tape& tape, std::span<const Var> in) { return std::vector{f(tape, in[0])}; }});
    }
  }
}

// Closed forms, over arguments far beyond where e^x overflows.
TEST(Activation, ValuesAndSlopesFarOut) {
  const std::vector<double> points{-1000, -100, -88.5, -40, -5, -1e-3, 0, 1e-3, 5, 40, 88.5, 100, 1000};
  const auto n = static_cast<std::int64_t>(points.size());
  struct Expected {
    Function f;
    double (*value)(double);
    double (*slope)(double);
  };
  static const auto sigma = [](double x) { return 1.0 / (1.0 + std::exp(-x)); };
  const Expected table[] = {
      {kFunctions[0], [](double x) { return x * sigma(x); }, [](double x) { return sigma(x) * (1.0 + x * sigma(-x)); }},
      {kFunctions[1], [](double x) { return sigma(x); }, [](double x) { return sigma(x) * sigma(-x); }},
      {kFunctions[3], [](double x) { return (std::min(x, 0.0) - std::log1p(std::exp(-std::abs(x)))) / 16.0; },
       [](double x) { return sigma(-x) / 16.0; }},
      {kFunctions[4], [](double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); },
       [](double x) { return sigma(x); }},
  };
  for (const DType dtype : {DType::f64, DType::f32}) {
    for (const Expected& e : table) {
      Tape tape(heap_allocator(Hygiene::hostile));
      const Var x = tape.leaf(testing::cast(Tensor::from({n}, points), dtype));
      const Var y = e.f(tape, x);
      tape.backward(y, testing::cast(Tensor::from({n}, std::vector<double>(points.size(), 1.0)), dtype));
      const Tensor values = testing::cast(y.value, DType::f64), slopes = testing::cast(tape.gradient(x), DType::f64);
      const double tolerance = dtype == DType::f64 ? 1e-13 : 5e-7;
      for (std::size_t i = 0; i < points.size(); ++i) {
        const double value = e.value(points[i]), slope = e.slope(points[i]);
        EXPECT_NEAR(values.data<double>()[i], value, tolerance * std::abs(value) + 1e-36) << "x " << points[i];
        EXPECT_NEAR(slopes.data<double>()[i], slope, tolerance * std::max(std::abs(slope), 1e-3)) << "x " << points[i];
      }
    }
  }
}

TEST(Activation, KeepsNaN) {
  Tape tape(heap_allocator());
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const Function f : kFunctions) {
    const Var y = f(tape, Tape::constant(Tensor::from({3}, std::vector<float>{1.0f, nan, 2.0f})));
    EXPECT_FALSE(std::isnan(y.value.data<float>()[0]));
    EXPECT_TRUE(std::isnan(y.value.data<float>()[1]));
  }
}

}  // namespace
}  // namespace weft
