// A connection around a recurrence, weighted by one number for each head: y[t, h] = o[t, h] + s_h x[t, h].
//
// T tokens, H heads, D head width.
#pragma once

#include "autograd/tape.h"

namespace weft {

struct HeadSkipForward {
  DType dtype;
  std::int64_t T, H, D;
  const void* o;      // [T, H, D]
  const void* x;      // [T, H, D]
  const void* scale;  // [H] accumulator
  void* y;            // [T, H, D]
};

// dx = s dy, ds = sum over tokens and channels of dy x; do is dy itself. A null gradient is not wanted.
struct HeadSkipBackward {
  DType dtype;
  std::int64_t T, H, D;
  const void* x;      // [T, H, D]
  const void* scale;  // [H] accumulator
  const void* dy;     // [T, H, D]
  void* dx;           // [T, H, D] or null
  Write write_dx;
  void* dscale;  // [H] accumulator, or null
  Write write_dscale;
};

void head_skip_forward_cuda(const HeadSkipForward& args, const Launch& launch);
void head_skip_backward_cuda(const HeadSkipBackward& args, const Launch& launch);
std::size_t head_skip_backward_cuda_workspace(const HeadSkipBackward& args);

// o, x [T, H, D], scale [H] of accumulator type.
Var head_skip(Tape& tape, const Var& o, const Var& x, const Var& scale);

}  // namespace weft
