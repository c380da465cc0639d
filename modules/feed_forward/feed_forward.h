// The SwiGLU feed-forward network (Shazeer, 2020): w_down (silu(w_gate x) * (w_up x)), each product plus its bias b_*
// if there are biases.
#pragma once

#include "autograd/tape.h"

namespace weft {

struct FeedForwardShape {
  std::int64_t width, hidden;
  bool bias = false;
};

class FeedForward {
 public:
  // Declares w_gate, w_up [hidden, width] and w_down [width, hidden]; `layers` sets the scale of w_down's first values.
  FeedForward(const ParameterScope& scope, const FeedForwardShape& shape, std::int64_t layers);

  Var forward(Tape& tape, const Var& x) const;  // [T, width] -> [T, width]

 private:
  Parameter *w_gate_, *w_up_, *w_down_;
  Parameter *b_gate_ = nullptr, *b_up_ = nullptr, *b_down_ = nullptr;
};

}  // namespace weft
