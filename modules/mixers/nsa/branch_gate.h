// The gated sum of the three branches: o = sum_b sigma(g_b) o_b, one gate for each head and branch.
//
// R rows (token and head), D width of a row.
#pragma once

#include <array>

#include "autograd/tape.h"

namespace weft {

inline constexpr int kBranches = 3;

struct BranchGateForward {
  DType dtype;
  std::int64_t R, D;
  std::array<const void*, kBranches> o;  // [R, D]
  const void* g;                         // [R, kBranches]
  void* y;                               // [R, D]
};
void branch_gate_forward_cuda(const BranchGateForward& args, const Launch& launch);

// do_b = sigma(g_b) dy, dg_b = sigma'(g_b) <dy, o_b>.
struct BranchGateBackward {
  DType dtype;
  std::int64_t R, D;
  std::array<const void*, kBranches> o;
  const void* g;
  const void* dy;                    // [R, D]
  std::array<void*, kBranches> d_o;  // [R, D] or null
  std::array<Write, kBranches> write_d_o;
  void* dg;  // [R, kBranches] or null
  Write write_dg;
};
void branch_gate_backward_cuda(const BranchGateBackward& args, const Launch& launch);

// o [T, H, D] each, g [T, H kBranches] with the gates of a head together -> [T, H, D].
Var branch_gate(Tape& tape, const std::array<Var, kBranches>& o, const Var& g);

}  // namespace weft
