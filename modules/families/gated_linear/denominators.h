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

struct MagnitudeAwareForward {
  DType dtype;
  std::int64_t R, D;
  const void* sums;    // [R, D+1]: a, z
  const void* totals;  // [R, D+1]: c, the sum of all values so far, and how many they are
  void* o;             // [R, D]
};
// With m values so far: da = (1 + 1/z) do, dz = -<do, a> / z^2 - <do, c> / m, dc = -(z/m) do; m is no variable.
struct MagnitudeAwareBackward {
  DType dtype;
  std::int64_t R, D;
  const void* sums;    // [R, D+1]
  const void* totals;  // [R, D+1]
  const void* d_o;     // [R, D]
  void* dsums;         // [R, D+1] or null
  Write write_dsums;
  void* dtotals;  // [R, D+1] or null
  Write write_dtotals;
};

// v [T,H,D] -> [T,H,D+1], the last column 1.
Var append_ones(Tape& tape, const Var& v);
// sums [T,H,D+1] -> a / n [T,H,D].
Var divide_by_denominator(Tape& tape, const Var& sums);
// sums, totals [T,H,D+1] -> (1 + 1/z) a - (z/m) c [T,H,D].
Var magnitude_aware(Tape& tape, const Var& sums, const Var& totals);

}  // namespace weft
