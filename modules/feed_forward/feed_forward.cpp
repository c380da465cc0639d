#include "modules/feed_forward/feed_forward.h"

#include <cmath>

#include "autograd/ops/linear/linear.h"
#include "autograd/ops/swiglu/swiglu.h"

namespace weft {

namespace {

Var projected(Tape& tape, const Var& x, Parameter& weight, Parameter* bias) {
  return bias == nullptr ? linear(tape, x, tape.parameter(weight))
                         : linear(tape, x, tape.parameter(weight), tape.parameter(*bias));
}

}  // namespace

FeedForward::FeedForward(const ParameterScope& scope, const FeedForwardShape& shape, std::int64_t layers) {
  const auto matrix = [&](const char* name, std::int64_t out, std::int64_t in, double deviation) {
    return &scope.declare(name, {out, in}, ParameterKind::matrix, Init::normal(deviation));
  };
  w_gate_ = matrix("w_gate", shape.hidden, shape.width, 0.02);
  w_up_ = matrix("w_up", shape.hidden, shape.width, 0.02);
  w_down_ = matrix("w_down", shape.width, shape.hidden, 0.02 / std::sqrt(2.0 * static_cast<double>(layers)));
  if (!shape.bias) return;
  const auto vector = [&](const char* name, std::int64_t n) {
    return &scope.declare(name, {n}, ParameterKind::vector, Init::constant(0.0));
  };
  b_gate_ = vector("b_gate", shape.hidden);
  b_up_ = vector("b_up", shape.hidden);
  b_down_ = vector("b_down", shape.width);
}

Var FeedForward::forward(Tape& tape, const Var& x) const {
  const Var gate = projected(tape, x, *w_gate_, b_gate_);
  const Var up = projected(tape, x, *w_up_, b_up_);
  return projected(tape, swiglu(tape, gate, up), *w_down_, b_down_);
}

}  // namespace weft
