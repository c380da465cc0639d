// The whole numerical check of a differentiable operation, from a case that only declares inputs and a function.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "autograd/tape.h"
#include "tests/support/compare.h"
#include "tests/support/random.h"

namespace weft::testing {

struct OpCase {
  std::string name;
  // fp64; each is a leaf whose gradient is checked.
  std::vector<Tensor> inputs;
  // Any number of outputs; all of them enter the loss L = sum_i <w_i, output_i> with random w_i.
  std::function<std::vector<Var>(Tape&, std::span<const Var>)> function;
  Tolerance fp32 = kFp32;
  double finite_difference = 1e-6;  // max error relative to the largest gradient entry
};

// What one evaluation gives.
struct Evaluation {
  std::vector<Tensor> outputs;
  std::vector<Tensor> gradients;  // zeros where none arrived
};

// Evaluates outputs and the gradients of L in hostile memory (outputs and workspaces start as NaN, canaries are
// checked). `calls` > 1 applies the function that often to the same leaves, so that gradients accumulate.
Evaluation evaluate(const OpCase& c, DType dtype, int calls = 1);

// Asserts, for the case:
//  1. fp64 gradients equal central differences (all entries of small inputs, sampled entries of large ones);
//  2. two runs give the same bits;
//  3. accumulation: two calls on the same leaves give twice the gradient, bit for bit;
//  4. fp32 agrees with fp64 evaluated on the fp32-rounded inputs, within c.fp32;
//  5. an absent gradient of any one output counts as zero.
void check_op(const OpCase& c);

}  // namespace weft::testing
