// Gates: y = x a(g) with a = sigma, silu, gelu (tanh form) or nothing (the gate itself), element by element or one gate
// a row.
//
// R rows of x, D width of a row. Element-wise gates have one gate an element (R D of them), row gates one a row (R).
// Gates have the type of x, or, f32 beside bf16, accumulator_dtype of it; so have their gradients.
#pragma once

#include "autograd/tape.h"

namespace weft {

enum class GateFunction : std::uint8_t { sigmoid, silu, gelu, linear };

struct GateForward {
  DType dtype, gate_dtype;
  GateFunction function;
  bool per_row;
  std::int64_t R, D;
  const void* x;  // [R, D]
  const void* g;  // [R, D], or [R] with per_row
  void* y;        // [R, D]
};

// dx = dy a(g), dg = dy x a'(g), summed over the row with per_row.
struct GateBackward {
  DType dtype, gate_dtype;
  GateFunction function;
  bool per_row;
  std::int64_t R, D;
  const void* x;   // [R, D]
  const void* g;   // [R, D] or [R]
  const void* dy;  // [R, D]
  void* dx;        // [R, D] or null
  Write write_dx;
  void* dg;  // [R, D] or [R], or null
  Write write_dg;
};

void gate_forward_cuda(const GateForward& args, const Launch& launch);
void gate_backward_cuda(const GateBackward& args, const Launch& launch);

// g has the shape of x, or that of x without its last dimension (for x [T, H, D]: one gate a head, g [T, H]).
Var sigmoid_gate(Tape& tape, const Var& x, const Var& g);
Var silu_gate(Tape& tape, const Var& x, const Var& g);
Var gelu_gate(Tape& tape, const Var& x, const Var& g);
Var linear_gate(Tape& tape, const Var& x, const Var& g);

}  // namespace weft
