#include "autograd/ops/forget_gate/forget_gate.h"

#include <cmath>

#include "tests/support/op_check.h"

namespace weft {
namespace {

using testing::cast;
using testing::normal;
using testing::OpCase;

OP_TEST(ForgetGate, GradientsAndPrecision) {
  for (const double gamma : {0.0, 1e-3, 0.3, 0.95}) {
    for (const Shape& z : {Shape{0, 3}, Shape{1}, Shape{17, 2, 3}, Shape{1000, 5}}) {
      check_op(OpCase{.name = fmt::format("gamma {} z {}", gamma, z.str()),
                      .inputs = {normal(z, 1, 2.0)},
                      .function = [gamma](Tape& tape, std::span<const Var> in) {
                        const ForgetGate gate = forget_gate(tape, in[0], gamma);
                        return std::vector{gate.k, gate.g};
                      }});
    }
  }
}

// k = -expm1(g) and g = logaddexp(ln gamma, ln(1 - gamma) + ln sigma(z)), relative to their own size far out, with
// finite slopes.
TEST(ForgetGate, KeepsItsPrecisionAtBothEnds) {
  const std::vector<double> points{-1e4, -90, -30, -5, -0.1, 0, 0.1, 5, 15, 60};
  const auto n = static_cast<std::int64_t>(points.size());
  for (const DType dtype : {DType::f64, DType::f32}) {
    for (const double gamma : {0.0, 0.25, 0.75}) {
      Tape tape(heap_allocator(Hygiene::hostile));
      const Var z = tape.leaf(cast(Tensor::from({n}, points), dtype));
      const ForgetGate gate = forget_gate(tape, z, gamma);
      const Tensor k = cast(gate.k.value, DType::f64), g = cast(gate.g.value, DType::f64);
      const Tensor one = cast(Tensor::from({n}, std::vector<double>(points.size(), 1.0)), dtype);
      tape.backward(std::array{gate.k, gate.g}, std::array{one, one});
      const Tensor slope = cast(tape.gradient(z), DType::f64);
      const double tolerance = dtype == DType::f64 ? 1e-14 : 1e-6;
      for (std::size_t i = 0; i < points.size(); ++i) {
        const double above = std::max(points[i], 0.0), size = std::abs(points[i]);
        const double key = (1.0 - gamma) * std::exp(-above) / (std::exp(-size) + 1.0);  // (1 - gamma) sigma(-z)
        const double open = std::log1p(-gamma) + points[i] - above - std::log1p(std::exp(-size));
        const double high = std::max(open, std::log(gamma)), low = std::min(open, std::log(gamma));
        const double log_f = key < 0.5 ? std::log1p(-key) : high + std::log1p(std::exp(low - high));
        EXPECT_NEAR(k.data<double>()[i], key, tolerance * key + 1e-37) << "gamma " << gamma << " z " << points[i];
        EXPECT_NEAR(g.data<double>()[i], log_f, tolerance * std::abs(log_f) + 1e-37)
            << "gamma " << gamma << " z " << points[i];
        EXPECT_TRUE(std::isfinite(slope.data<double>()[i]));
      }
      // Without a floor, g goes on falling with z; with one, it does not.
      EXPECT_NEAR(slope.data<double>()[0], gamma == 0.0 ? 1.0 : 0.0, 1e-6);
    }
  }
}

}  // namespace
}  // namespace weft
