// Denominators of normalised linear attention, carried through the recurrence as one more value column of ones:
//
//   [v, 1] -> recurrence -> [a, n],   a_t = phi(q_t) sum_j phi(k_j)^T v_j,   n_t = phi(q_t) . sum_j phi(k_j)
//
// then o = a / n, or the magnitude-aware combination of MALA (arXiv:2507.00698). README.md has the gradients.
//
// R rows (tokens x heads), D width of a row without its column.
#pragma once

#include "autograd/tape.h"

namespace weft {

// Below it a denominator counts as this number, and passes no gradient on.
inline constexpr double kLeastDenominator = 1e-6;

struct AppendOnesForward {
  DType dtype;
  std::int64_t R, D;
  const void* v;  // [R, D]
  void* y;        // [R, D+1]
};
struct AppendOnesBackward {
  DType dtype;
  std::int64_t R, D;
  const void* dy;  // [R, D+1]
  void* dv;        // [R, D]
  Write write_dv;
};

struct DivideForward {
  DType dtype;
  std::int64_t R, D;
  const void* sums;  // [R, D+1]: a, n
  void* o;           // [R, D]
};
// da = do / n, dn = -<do, o> / n.
struct DivideBackward {
  DType dtype;
  std::int64_t R, D;
  const void* sums;  // [R, D+1]
  const void* d_o;   // [R, D]
  void* dsums;       // [R, D+1]
  Write write_dsums;
};

// What the difference of scores from their mean counts: c = 1, or `share` divided by how many values there are.
struct MagnitudeAwareForward {
  DType dtype;
  std::int64_t R, D;
  double share;        // 0: c = 1
  const void* sums;    // [R, D+1]: a, z
  const void* totals;  // [R, D+1]: C, the sum of all values so far, and how many they are
  void* o;             // [R, D]
};
// With C, m the totals: da = (c + 1/z) do, dz = -<do, a> / z^2 - c <do, C> / m, dC = -c (z/m) do; m is no variable.
struct MagnitudeAwareBackward {
  DType dtype;
  std::int64_t R, D;
  double share;
  const void* sums;    // [R, D+1]
  const void* totals;  // [R, D+1]
  const void* d_o;     // [R, D]
  void* dsums;         // [R, D+1] or null
  Write write_dsums;
  void* dtotals;  // [R, D+1] or null
  Write write_dtotals;
};

void append_ones_forward_cuda(const AppendOnesForward& args, const Launch& launch);
void append_ones_backward_cuda(const AppendOnesBackward& args, const Launch& launch);
void divide_forward_cuda(const DivideForward& args, const Launch& launch);
void divide_backward_cuda(const DivideBackward& args, const Launch& launch);
void magnitude_aware_forward_cuda(const MagnitudeAwareForward& args, const Launch& launch);
void magnitude_aware_backward_cuda(const MagnitudeAwareBackward& args, const Launch& launch);

// v [T,H,D] -> [T,H,D+1], the last column 1.
Var append_ones(Tape& tape, const Var& v);
// sums [T,H,D+1] -> a / n [T,H,D].
Var divide_by_denominator(Tape& tape, const Var& sums);
// sums, totals [T,H,D+1] -> a / z + c (a - (z/m) C) [T,H,D], with c = 1, or share / m unless `share` is 0.
Var magnitude_aware(Tape& tape, const Var& sums, const Var& totals, double share = 0.0);

}  // namespace weft
