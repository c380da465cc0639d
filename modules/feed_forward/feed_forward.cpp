#include "modules/feed_forward/feed_forward.h"

#include <cmath>

#include "autograd/ops/linear/linear.h"
#include "autograd/ops/swiglu/swiglu.h"

namespace weft {

FeedForward::FeedForward(const ParameterScope& scope, std::int64_t width, std::int64_t hidden, std::int64_t layers)
    : w_gate_(&scope.declare("w_gate", {hidden, width}, ParameterKind::matrix, Init::normal(0.02))),
      w_up_(&scope.declare("w_up", {hidden, width}, ParameterKind::matrix, Init::normal(0.02))),
      w_down_(&scope.declare("w_down", {width, hidden}, ParameterKind::matrix,
                             Init::normal(0.02 / std::sqrt(2.0 * static_cast<double>(layers))))) {}

Var FeedForward::forward(Tape& tape, const Var& x) const {
  const Var gate = linear(tape, x, tape.parameter(*w_gate_));
  const Var up = linear(tape, x, tape.parameter(*w_up_));
  return linear(tape, swiglu(tape, gate, up), tape.parameter(*w_down_));
}

}  // namespace weft
