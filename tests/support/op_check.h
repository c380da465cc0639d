// The whole numerical check of a differentiable operation, from a case that only declares inputs and a function.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "autograd/tape.h"
#include "tests/support/compare.h"
#include "tests/support/gpu.h"
#include "tests/support/random.h"

namespace weft::testing {

// How an input is stored when activations are bf16, as on a GPU; elsewhere all have one type.
enum class InputRole : std::uint8_t {
  activation,  // bf16, and so is its gradient
  weight,      // bf16 with a gradient in f32
  vector,      // f32: statistics, log decays, states, vector parameters
};
struct OpInput {
  OpInput(Tensor t, InputRole r = InputRole::activation) : value(std::move(t)), role(r) {}
  Tensor value;  // fp64
  InputRole role;
};
inline std::vector<OpInput> activations(const std::vector<Tensor>& tensors) {
  return {tensors.begin(), tensors.end()};
}
inline OpInput weight(Tensor t) {
  return {std::move(t), InputRole::weight};
}
inline OpInput vector_input(Tensor t) {
  return {std::move(t), InputRole::vector};
}

struct OpCase {
  std::string name;
  // Each is a leaf whose gradient is checked.
  std::vector<OpInput> inputs;
  // Any number of outputs; all of them enter the loss L = sum_i <w_i, output_i> with random w_i.
  std::function<std::vector<Var>(Tape&, std::span<const Var>)> function;
  Tolerance fp32 = kFp32;
  Tolerance bf16 = kBf16;
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

// The checks of a case on the CPU; asserts:
//  1. fp64 gradients equal central differences (all entries of small inputs, sampled entries of large ones);
//  2. two runs give the same bits;
//  3. accumulation: two calls on the same leaves give twice the gradient, bit for bit;
//  4. fp32 agrees with fp64 evaluated on the fp32-rounded inputs, within c.fp32;
//  5. an absent gradient of any one output counts as zero.
void check_op(const OpCase& c);

// Those on the first GPU, for f32 and for bf16 activations:
//  1. outputs and gradients agree with fp64 on the CPU, evaluated on the same rounded inputs, within c.fp32 and c.bf16;
//     gradients of weights and vectors, which are sums over tokens, within kTokenSums instead if that is wider;
//  2. two runs, and two calls on the same leaves, as above.
void check_op_on_gpu(const OpCase& c);

// One of the two, for helpers of a test.
using OpCheck = void (*)(const OpCase&);

// A test of an op on both devices: the body calls `check_op(case)` for each of its cases.
#define OP_TEST(suite, name)                                               \
  using suite##_##name##_check = void (*)(const ::weft::testing::OpCase&); \
  static void suite##_##name(suite##_##name##_check check_op);             \
  TEST(suite, name) {                                                      \
    suite##_##name(&::weft::testing::check_op);                            \
  }                                                                        \
  TEST(suite##Gpu, name) {                                                 \
    WEFT_NEEDS_GPU();                                                      \
    suite##_##name(&::weft::testing::check_op_on_gpu);                     \
  }                                                                        \
  static void suite##_##name([[maybe_unused]] suite##_##name##_check check_op)

}  // namespace weft::testing
