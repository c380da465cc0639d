// The language-model head and its loss in one operation: logits = x weight^T, softmax cross-entropy, z-loss (PaLM,
// arXiv:2204.02311, section 5). The [T, V] logits never exist; tokens go through in chunks.
//
// T tokens, d width, V vocabulary. With l_t = log Z_t - logit[label_t] and Z_t = sum_v exp(logit_tv),
//   loss = (sum_t w_t l_t + z_loss sum_t w_t (log Z_t)^2) / denominator,
//   dlogits_t = w_t / denominator * ((1 + 2 z_loss log Z_t) softmax_t - onehot(label_t)).
//
// dlogits is known as soon as a chunk's logits are, so the forward pass of a recording tape also computes dx and
// dweight for a seed of 1, and backward only scales them: three matrix products in all (logits, dx, dweight) where
// recomputing the logits in backward would take four. The price is a [V, d] buffer between forward and backward, the
// size of the weight's own gradient, and nothing for a weight that wants no gradient. LossOptions::unit_seed saves it.
#pragma once

#include "autograd/tape.h"

namespace weft {

struct LossOptions {
  double denominator = 1.0;  // > 0: sum of w_t over everything that makes one optimizer step
  // f32 [1] on the GPU that computes, in place of `denominator`: a recorded step divides by what is there when it runs.
  Tensor recorded_denominator = {};
  double z_loss = 0.0;       // lambda
  Tensor token_losses = {};  // [T] of accumulator_dtype(x) or undefined: receives l_t, unweighted, 0 where ignored
  // Promises that backward comes once, with a seed of exactly 1. On a GPU the gradient of a weight that is a parameter
  // then goes into the parameter during the forward pass.
  bool unit_seed = false;
};

// Over the tokens that are not ignored, in fp64.
struct LossSums {
  double loss = 0.0;             // sum w_t l_t
  double log_z_squared = 0.0;    // sum w_t (log Z_t)^2
  double weight = 0.0;           // sum w_t
  std::int64_t token_count = 0;  // number of them
};

struct LossTerms {
  Var loss;     // [1] of accumulator_dtype(x)
  Tensor sums;  // f64 [4] where the tape computes: the fields of LossSums in order
};
// Waits for the stream.
LossSums read_loss_sums(const Tensor& sums, const Stream& stream);

// x [T, d], weight [V, d], labels i32 [T] with -1 = ignored, weights f32 [T] or undefined (all 1).
// Ignored tokens get a gradient of exactly 0, and on the CPU cost nothing. A label that is neither -1 nor in [0, V)
// throws config_error naming the row and the label, on the CPU; on a GPU, where nobody reads it, the loss becomes NaN.
LossTerms linear_cross_entropy(Tape& tape, const Var& x, const Var& weight, const Tensor& labels, const Tensor& weights,
                               const LossOptions& options);

struct LinearCrossEntropyForward {
  DType dtype;
  std::int64_t T, d, V;
  double denominator;
  const float* recorded_denominator;  // [1] or null; never on the CPU
  double z_loss;
  const void* x;               // [T, d]
  const void* weight;          // [V, d]
  const std::int32_t* labels;  // [T]
  const float* weights;        // [T] or null
  void* loss;                  // [1] of accumulator_dtype
  double* sums;                // [4]
  void* token_losses;          // [T] of accumulator_dtype, or null
  void* dx;                    // [T, d] or null: gradients for a seed of 1
  void* dweight;               // [V, d] of accumulator_dtype, or null
  Write write_dweight;
};

// target = seed * gradient, or += with Write::accumulate. `target` may be `gradient`.
struct LinearCrossEntropyBackward {
  DType dtype;  // of gradient and target
  std::int64_t n;
  const void* seed;      // [1] of accumulator_dtype
  const void* gradient;  // [n]
  void* target;          // [n]
  Write write;
};

void linear_cross_entropy_forward_cuda(const LinearCrossEntropyForward& args, const Launch& launch);
std::size_t linear_cross_entropy_forward_cuda_workspace(const LinearCrossEntropyForward& args);
void linear_cross_entropy_backward_cuda(const LinearCrossEntropyBackward& args, const Launch& launch);

}  // namespace weft
