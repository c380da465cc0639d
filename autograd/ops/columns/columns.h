// Cuts and joins of the last axis: one tensor of width A + B against two of widths A and B.
//
// T rows of the second part, each shared by H rows (heads) of the first: a join repeats it, and the adjoint, which is a
// split, adds up the heads in their order. H = 1 for parts of one shape.
#pragma once

#include <array>

#include "autograd/tape.h"

namespace weft {

// Forward of a split; backward of a join.
struct SplitColumns {
  DType dtype;
  std::int64_t T, H, A, B;
  const void* x;  // [T, H, A + B]
  void* a;        // [T, H, A] or null
  Write write_a;
  void* b;  // [T, B] or null: the sum over heads
  Write write_b;
};

// Forward of a join; backward of a split.
struct JoinColumns {
  DType dtype;
  std::int64_t T, H, A, B;
  const void* a;  // [T, H, A]; null = zeros
  const void* b;  // [T, B]; null = zeros
  void* y;        // [T, H, A + B]
  Write write_y;
};

void split_columns_cuda(const SplitColumns& args, const Launch& launch);
void join_columns_cuda(const JoinColumns& args, const Launch& launch);

// x [..., W] -> {[..., at], [..., W - at]}, 0 < at < W.
std::array<Var, 2> split_columns(Tape& tape, const Var& x, std::int64_t at);

// a [..., A], b [..., B] -> [..., A + B], or a [T, H, A], b [T, 1, B] -> [T, H, A + B].
Var join_columns(Tape& tape, const Var& a, const Var& b);

}  // namespace weft
