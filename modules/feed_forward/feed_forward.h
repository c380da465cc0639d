// The SwiGLU feed-forward network (Shazeer, 2020): w_down (silu(w_gate x) * (w_up x)).
#pragma once

#include "autograd/tape.h"

namespace weft {

class FeedForward {
 public:
  // Declares w_gate, w_up [hidden, width] and w_down [width, hidden]; `layers` sets the scale of w_down's first values.
  FeedForward(const ParameterScope& scope, std::int64_t width, std::int64_t hidden, std::int64_t layers);

  Var forward(Tape& tape, const Var& x) const;  // [T, width] -> [T, width]

 private:
  Parameter* w_gate_;
  Parameter* w_up_;
  Parameter* w_down_;
};

}  // namespace weft
