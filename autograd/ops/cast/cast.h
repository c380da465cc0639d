// Conversion between floating types; to bf16 rounds once, to nearest, ties to even.
//
// N elements.
#pragma once

#include "autograd/tape.h"

namespace weft {

// Serves both directions: the backward casts dy into the type of x.
struct Cast {
  DType from, to;
  std::int64_t N;
  const void* x;  // [N] of `from`
  void* y;        // [N] of `to`
  Write write_y;
};

void cast_cuda(const Cast& args, const Launch& launch);

// f64 (not on a GPU), f32 and bf16. The gradient has the type of the value it belongs to. Casting to the type of x
// returns x.
Var cast(Tape& tape, const Var& x, DType dtype);

}  // namespace weft
