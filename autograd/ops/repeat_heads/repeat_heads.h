// Heads of a group share one row: y[t, h] = x[t, h / (H/G)].
//
// T tokens, G groups, H heads (a multiple of G), D width.
#pragma once

#include "autograd/tape.h"

namespace weft {

struct RepeatHeadsForward {
  DType dtype;
  std::int64_t T, G, H, D;
  const void* x;  // [T, G, D]
  void* y;        // [T, H, D]
};

// dx = sum of dy over the heads of a group, in their order.
struct RepeatHeadsBackward {
  DType dtype;
  std::int64_t T, G, H, D;
  const void* dy;  // [T, H, D]
  void* dx;        // [T, G, D]
  Write write_dx;
};

void repeat_heads_forward_cuda(const RepeatHeadsForward& args, const Launch& launch);
void repeat_heads_backward_cuda(const RepeatHeadsBackward& args, const Launch& launch);

// x [T, G, D] -> [T, H, D].
Var repeat_heads(Tape& tape, const Var& x, std::int64_t heads);

}  // namespace weft
