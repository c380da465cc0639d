// A memory whose state is the weights of a small network, trained while the sequence is read (TTT-Linear and TTT-MLP,
// arXiv:2407.04620). README.md gives the mathematics.
//
//   f(x) = x + LN(x W + b)                          inner loss of token j: |f(k_j) - v_j|^2 / 2
//   f(x) = x + LN(gelu(x W1 + b1) W2 + b2)          with a hidden layer
//
// A document is cut into inner batches of b tokens. Gradients of a batch are taken at the weights it starts with; the
// t-th token of a batch reads with those weights less tok_t sum_{j<=t} rate_j (gradient of token j),
// tok_t = max(1/(t+1) + offset_t, 0), and the last token's weights start the next batch.
//
// T tokens of the packed row, N documents, H heads, d head width, m hidden width (0: none), b batch length, P numbers
// of a memory: [(d+1) m + (m+1) d] or [(d+1) d], each bias stored as the last row of its matrix.
#pragma once

#include "autograd/documents.h"
#include "autograd/tape.h"
#include "modules/families/final_state.h"

namespace weft {

struct TttProblem {
  DType dtype;
  std::int64_t T, N, H, d, m;
  std::int64_t C;                  // b
  const void* q;                   // [T, H, d]
  const void* k;                   // [T, H, d]
  const void* v;                   // [T, H, d]
  const void* rate;                // [T, H]
  const void* offset;              // [b]
  const void* gamma;               // [H, d] weight and bias of LN
  const void* beta;                // [H, d]
  const void* w1;                  // [H, d, m] or null
  const void* b1;                  // [H, m] or null
  const void* w2;                  // [H, m or d, d]
  const void* b2;                  // [H, d]
  const void* state;               // [N, H, 2 P] memory and pending sum of gradients, or null: start from w1 .. b2
  const std::int32_t* cu_seqlens;  // [N + 1]
  const std::int32_t* phase;       // [N] tokens of the current batch that the state has seen; null: 0
};

struct TttForward : TttProblem {
  void* o = nullptr;            // [T, H, d]
  void* final_state = nullptr;  // [N, H, 2 P] or null: not wanted
};

// A null gradient is not wanted. Nothing but the inputs is saved.
struct TttBackward : TttProblem {
  const void* d_o = nullptr;           // [T, H, d]
  const void* dfinal_state = nullptr;  // [N, H, 2 P] or null: zero
  void* dq = nullptr;
  Write write_dq = Write::overwrite;
  void* dk = nullptr;
  Write write_dk = Write::overwrite;
  void* dv = nullptr;
  Write write_dv = Write::overwrite;
  void* drate = nullptr;
  Write write_drate = Write::overwrite;
  void* doffset = nullptr;
  Write write_doffset = Write::overwrite;
  void* dgamma = nullptr;
  Write write_dgamma = Write::overwrite;
  void* dbeta = nullptr;
  Write write_dbeta = Write::overwrite;
  void* dw1 = nullptr;
  Write write_dw1 = Write::overwrite;
  void* db1 = nullptr;
  Write write_db1 = Write::overwrite;
  void* dw2 = nullptr;
  Write write_dw2 = Write::overwrite;
  void* db2 = nullptr;
  Write write_db2 = Write::overwrite;
  void* dstate = nullptr;
  Write write_dstate = Write::overwrite;
};

void ttt_forward_cuda(const TttForward& args, const Launch& launch);
void ttt_backward_cuda(const TttBackward& args, const Launch& launch);
std::size_t ttt_forward_cuda_workspace(const TttForward& args);
std::size_t ttt_backward_cuda_workspace(const TttBackward& args);

inline constexpr double kTttNormEps = 1e-6;  // of LN

// Numbers of a memory: P.
std::int64_t ttt_memory_size(std::int64_t d, std::int64_t m);

// In the accumulator type: rate, offset, gamma, beta and states.
struct TttInputs {
  Var q, k, v;      // [T, H, d]
  Var rate;         // [T, H], >= 0
  Var offset;       // [b]
  Var gamma, beta;  // [H, d]
};

// The memory at the start of every document; w1, b1 empty for the linear memory.
struct TttWeights {
  Var w1, b1;  // [H, d, m], [H, m]
  Var w2, b2;  // [H, m or d, d], [H, d]
};

// Documents continue: the memory and, in the middle of a batch, the sum of its gradients so far. At the start of a
// batch (phase 0) the sum is not read.
struct TttStart {
  Var state;                        // [N, H, 2 P]
  std::vector<std::int32_t> phase;  // [N] tokens of the current batch that are already in the sum
};

struct TttOutput {
  Var o;            // [T, H, d]
  Var final_state;  // [N, H, 2 P], or empty
};

// b is the length of `offset`. With a `start` the weights give shapes only. Gradients reach every input.
TttOutput ttt_memory(Tape& tape, const TttInputs& inputs, const TttWeights& weights, const DocumentsPtr& documents,
                     FinalState final_state, const TttStart* start = nullptr);

}  // namespace weft
