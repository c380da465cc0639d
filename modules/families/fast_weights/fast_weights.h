// A memory whose state is the weights of a small network, trained by gradient steps while the sequence is read
// (test-time training in large chunks: LaCT, arXiv:2505.23884; momentum and forgetting: Titans, arXiv:2501.00663).
//
// For one head, tokens as rows, the network is f_W(X) = rho X + (silu(X W0^T) * (X W2^T)) W1^T. A document is cut into
// chunks of L tokens. A chunk is read with the weights before it, out = f_W(q); a complete chunk is then written:
//
//   g = sum over its tokens of eta_t * descent direction of loss(f(k_t), v_t)
//   Z <- mean(mu) Z + g        W <- (1 - mean(lambda)) W + D,   D = Z or its orthogonalisation
//
// with the norms of the rows of W treated in one of four ways. README.md has the whole definition and its gradients.
//
// T tokens of the packed row, N documents, H heads, d_m width of queries, keys and values, d_h hidden width, L chunk
// length, P = 3 d_m d_h elements of one head's weights in the order W0 [d_h,d_m], W2 [d_h,d_m], W1 [d_m,d_h].
#pragma once

#include <vector>

#include "autograd/documents.h"
#include "autograd/place.h"
#include "autograd/tape.h"

namespace weft {

// What writing minimises.
enum class InnerLoss : std::uint8_t {
  dot,  // -<f(k), v>, without rho k
  l2,   // |f(k) - v|^2 / 2
};

// N(W) gives the rows of W the norms that they have in the initial weights.
enum class NormMode : std::uint8_t {
  none,      // never used
  post,      // W <- N(W) after each write
  pre,       // reads and inner gradients use N(W), W itself is updated
  read_raw,  // reads use W; inner gradients and the update start from N(W)
};

struct FastWeightConfig {
  std::int64_t chunk = 1024;  // L
  InnerLoss loss = InnerLoss::l2;
  NormMode norm = NormMode::read_raw;
  bool residual = true;        // rho = 1, else 0
  bool orthogonalise = false;  // D = NS(Z)
  bool detach_norm = false;    // no gradient through the row norms of the initial weights
};

// What all directions share. The tables are in the memory of the device.
struct FastWeightProblem {
  DType dtype;
  FastWeightConfig config;
  std::int64_t T, N, H, d_m, d_h;
  const void* q;                           // [T, H, d_m]
  const void* k;                           // [T, H, d_m]
  const void* v;                           // [T, H, d_m]
  const void* eta;                         // [T, H, 3] rates of W0, W1, W2
  const void* mu;                          // [T, H] or null: no momentum
  const void* lambda;                      // [T, H] or null: nothing is forgotten
  const void* w0;                          // [H, d_h, d_m] weights at the start of a document
  const void* w1;                          // [H, d_m, d_h]
  const void* w2;                          // [H, d_h, d_m]
  const std::int32_t* cu_seqlens;          // [N + 1]
  const void* initial_weights = nullptr;   // [N, H, P] or null: w0, w1, w2
  const void* initial_momentum = nullptr;  // [N, H, P] or null: zero
};

struct FastWeightForward : FastWeightProblem {
  void* out = nullptr;             // [T, H, d_m]
  void* final_weights = nullptr;   // [N, H, P] or null, then a write that nothing reads is left out
  void* final_momentum = nullptr;  // [N, H, P] or null, as final_weights
};

// A null gradient is not wanted. The weights between chunks are computed again, nothing but the inputs is saved.
struct FastWeightBackward : FastWeightProblem {
  const void* dout = nullptr;             // [T, H, d_m]
  const void* dfinal_weights = nullptr;   // [N, H, P] or null: zero
  const void* dfinal_momentum = nullptr;  // [N, H, P] or null: zero
  void* dq = nullptr;
  Write write_dq = Write::overwrite;
  void* dk = nullptr;
  Write write_dk = Write::overwrite;
  void* dv = nullptr;
  Write write_dv = Write::overwrite;
  void* deta = nullptr;
  Write write_deta = Write::overwrite;
  void* dmu = nullptr;
  Write write_dmu = Write::overwrite;
  void* dlambda = nullptr;
  Write write_dlambda = Write::overwrite;
  void* dw0 = nullptr;
  Write write_dw0 = Write::overwrite;
  void* dw1 = nullptr;
  Write write_dw1 = Write::overwrite;
  void* dw2 = nullptr;
  Write write_dw2 = Write::overwrite;
  void* dinitial_weights = nullptr;
  Write write_dinitial_weights = Write::overwrite;
  void* dinitial_momentum = nullptr;
  Write write_dinitial_momentum = Write::overwrite;
};

// Inference from a state: document n goes on where sequence n of the state stopped, inside a chunk or between two.
struct FastWeightContinue : FastWeightProblem {
  const std::int32_t* pending = nullptr;  // [N] tokens that wait for their chunk to be complete
  void* pending_keys = nullptr;           // [N, H, L, d_m]
  void* pending_values = nullptr;         // [N, H, L, d_m]
  void* pending_rates = nullptr;          // [N, H, L, 5] eta, mu, lambda
  void* weights = nullptr;                // [N, H, P]
  void* momentum = nullptr;               // [N, H, P]
  void* out = nullptr;                    // [T, H, d_m]
};

void fast_weight_forward_cuda(const FastWeightForward& args, const Launch& launch);
void fast_weight_backward_cuda(const FastWeightBackward& args, const Launch& launch);
std::size_t fast_weight_forward_cuda_workspace(const FastWeightForward& args);
std::size_t fast_weight_backward_cuda_workspace(const FastWeightBackward& args);

// In the accumulator type: eta, mu, lambda and states.
struct FastWeightInputs {
  Var q, k, v;     // [T, H, d_m]
  Var eta;         // [T, H, 3]
  Var mu, lambda;  // [T, H]; {}: no momentum, nothing is forgotten
  Var w0, w1, w2;  // [H, d_h, d_m], [H, d_m, d_h], [H, d_h, d_m]
};

// Weights and momentum of every document and head: [N, H, P] each.
struct FastWeights {
  Var weights, momentum;
};

// out [T, H, d_m].
Var fast_weight_memory(Tape& tape, const FastWeightInputs& in, const DocumentsPtr& documents,
                       const FastWeightConfig& config);

struct FastWeightOutput {
  Var out;            // [T, H, d_m]
  FastWeights final;  // after the last complete chunk of each document
};

// The same from and to weights that gradients reach too. Documents start at a chunk's first token; `initial` without
// values ({}) is w0, w1, w2 and no momentum. With a value, w0, w1, w2 only give the row norms.
FastWeightOutput fast_weight_memory_with_state(Tape& tape, const FastWeightInputs& in, const FastWeights& initial,
                                               const DocumentsPtr& documents, const FastWeightConfig& config);

// What inference keeps of N sequences; the size does not depend on their lengths.
struct FastWeightState {
  // Sequences that have seen nothing: w0, w1, w2 as in FastWeightInputs.
  FastWeightState(std::int64_t sequences, const Tensor& w0, const Tensor& w1, const Tensor& w2, std::int64_t chunk,
                  const Place& place);
  FastWeightState(const FastWeightState& other);  // deep
  FastWeightState& operator=(const FastWeightState&) = delete;

  std::size_t bytes() const;
  static double bytes_for(std::int64_t H, std::int64_t d_m, std::int64_t d_h, std::int64_t chunk, DType dtype);

  Tensor weights, momentum;  // [N, H, P]
  // Of the pending tokens. On a device, where they join new ones in a row, [N, L, H, d_m] and [N, L, H, 3] with two
  // more of [N, L, H].
  Tensor keys, values;                // [N, H, L, d_m]
  Tensor rates;                       // [N, H, L, 5] eta, mu, lambda
  std::vector<std::int32_t> pending;  // [N]

 private:
  Place place_;
};

// out [T, H, d_m] for the next tokens of each sequence, any number of them; the state is advanced in place. Nothing is
// recorded. A row with one token for each sequence is a decoding step.
Tensor fast_weight_continue(Tape& tape, const FastWeightInputs& in, const Documents& documents,
                            const FastWeightConfig& config, FastWeightState& state);

// Floating-point operations for T tokens in documents of one length, as the CPU does them.
struct FastWeightCost {
  double forward_flops, backward_flops;
};
FastWeightCost fast_weight_cost(const FastWeightConfig& config, std::int64_t tokens, std::int64_t document_length,
                                std::int64_t H, std::int64_t d_m, std::int64_t d_h);

}  // namespace weft
