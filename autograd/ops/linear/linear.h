// Linear map: y = x W^T (+ b).
//
// R rows (tokens), I input width, O output width.
#pragma once

#include "autograd/tape.h"

namespace weft {

struct LinearForward {
  DType dtype;
  std::int64_t R, I, O;
  const void* x;       // [R, I]
  const void* weight;  // [O, I]
  const void* bias;    // [O] or null
  void* y;             // [R, O]
};

// dx = dy W, dweight = dy^T x, dbias = sum over rows of dy.
struct LinearBackward {
  DType dtype;
  std::int64_t R, I, O;
  const void* x;       // [R, I]
  const void* weight;  // [O, I]
  const void* dy;      // [R, O]
  void* dx;            // [R, I] or null
  Write write_dx;
  void* dweight;  // [O, I] or null
  Write write_dweight;
  void* dbias;  // [O] or null
  Write write_dbias;
};
std::size_t linear_backward_workspace(const LinearBackward& args);

// x [..., I], weight [O, I], bias [O]. Returns y [..., O].
Var linear(Tape& tape, const Var& x, const Var& weight);
Var linear(Tape& tape, const Var& x, const Var& weight, const Var& bias);

}  // namespace weft
