// Sums, products and scalings, element by element or of every row with one row.
//
// R rows, D width of a row; N = R D elements.
#pragma once

#include "autograd/tape.h"

namespace weft {

struct AddForward {
  DType dtype;
  std::int64_t N;
  const void* a;  // [N]
  const void* b;  // [N]
  void* y;        // [N]
};

struct MulForward {
  DType dtype;
  std::int64_t N;
  const void* a;  // [N]
  const void* b;  // [N]
  void* y;        // [N]
};

// da = dy b, db = dy a.
struct MulBackward {
  DType dtype;
  std::int64_t N;
  const void* a;   // [N]
  const void* b;   // [N]
  const void* dy;  // [N]
  void* da;        // [N] or null
  Write write_da;
  void* db;  // [N] or null
  Write write_db;
};

// Forward y = factor a; the backward is the same kernel with dy for a and da for y.
struct Scale {
  DType dtype;
  std::int64_t N;
  double factor;
  const void* a;  // [N]
  void* y;        // [N]
  Write write_y;
};

// A row, and its gradient, are of accumulator type: f32 beside bf16.
enum class RowFunction : std::uint8_t { add, mul };

struct RowForward {
  DType dtype;
  RowFunction function;
  std::int64_t R, D;
  const void* x;    // [R, D]
  const void* row;  // [D]
  void* y;          // [R, D]
};

// mul: dx = dy row, drow = sum over rows of dy x. add: drow = sum over rows of dy (dx is dy itself; leave dx null).
struct RowBackward {
  DType dtype;
  RowFunction function;
  std::int64_t R, D;
  const void* x;    // [R, D]; null for add
  const void* row;  // [D]; null for add
  const void* dy;   // [R, D]
  void* dx;         // [R, D] or null
  Write write_dx;
  void* drow;  // [D] or null
  Write write_drow;
};

void add_cuda(const AddForward& args, const Launch& launch);
void mul_forward_cuda(const MulForward& args, const Launch& launch);
void mul_backward_cuda(const MulBackward& args, const Launch& launch);
void scale_cuda(const Scale& args, const Launch& launch);
void row_forward_cuda(const RowForward& args, const Launch& launch);
void row_backward_cuda(const RowBackward& args, const Launch& launch);
std::size_t row_backward_cuda_workspace(const RowBackward& args);

// a and b have one shape.
Var add(Tape& tape, const Var& a, const Var& b);
Var mul(Tape& tape, const Var& a, const Var& b);
Var scale(Tape& tape, const Var& a, double factor);

// x [..., D], row [D] of accumulator type.
Var add_row(Tape& tape, const Var& x, const Var& row);
Var mul_row(Tape& tape, const Var& x, const Var& row);

}  // namespace weft
