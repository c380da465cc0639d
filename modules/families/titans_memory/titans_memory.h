// The neural memory of Titans (arXiv:2501.00663): the weights of a small network, trained by gradient descent with
// momentum and forgetting while the sequence is read. One head, inner loss of a token |f(k) - v|^2 / 2:
//
//   Z_t = mu_t Z_{t-1} - theta_t (gradient at Wc)      W_t = keep_t W_{t-1} + Z_t      o_t = f(q_t; W_t)
//   f(x) = x W     or, with a hidden layer,     f(x) = gelu(x W1) W2
//
// Wc is W at the start of the token's chunk of C tokens: the chunk length is part of the model. README.md derives the
// chunked form.
//
// T tokens of the packed row, N documents, H heads, d_k and d_v head widths of keys and values, m hidden width (0:
// none), P numbers of a memory: d_k d_v, or d_k m and then m d_v.
#pragma once

#include "autograd/documents.h"
#include "autograd/tape.h"
#include "modules/families/final_state.h"

namespace weft {

// P.
constexpr std::int64_t titans_memory_size(std::int64_t d_k, std::int64_t m, std::int64_t d_v) {
  return m > 0 ? m * (d_k + d_v) : d_k * d_v;
}

struct TitansProblem {
  DType dtype;
  std::int64_t T, N, H, d_k, d_v, m;
  std::int64_t C;
  const void* q;                   // [T, H, d_k]
  const void* k;                   // [T, H, d_k]
  const void* v;                   // [T, H, d_v]
  const void* keep;                // [T, H] in [0, 1]
  const void* momentum;            // [T, H] mu, in [0, 1]
  const void* rate;                // [T, H] theta
  const void* w1;                  // [H, d_k, m] at the start of a document, or null
  const void* w2;                  // [H, m or d_k, d_v]
  const void* state;               // [N, H, 3, P]: W, Z, Wc; or null: start from w1, w2 and 0
  const std::int32_t* cu_seqlens;  // [N + 1]
  const std::int32_t* phase;       // [N] tokens of the current chunk that the state has seen; null: 0
};

struct TitansForward : TitansProblem {
  void* o = nullptr;            // [T, H, d_v]
  void* final_state = nullptr;  // [N, H, 3, P] or null: not wanted
};

// A null gradient is not wanted. Nothing but the inputs is saved.
struct TitansBackward : TitansProblem {
  const void* d_o = nullptr;           // [T, H, d_v]
  const void* dfinal_state = nullptr;  // [N, H, 3, P] or null: zero
  void* dq = nullptr;
  Write write_dq = Write::overwrite;
  void* dk = nullptr;
  Write write_dk = Write::overwrite;
  void* dv = nullptr;
  Write write_dv = Write::overwrite;
  void* dkeep = nullptr;
  Write write_dkeep = Write::overwrite;
  void* dmomentum = nullptr;
  Write write_dmomentum = Write::overwrite;
  void* drate = nullptr;
  Write write_drate = Write::overwrite;
  void* dw1 = nullptr;
  Write write_dw1 = Write::overwrite;
  void* dw2 = nullptr;
  Write write_dw2 = Write::overwrite;
  void* dstate = nullptr;
  Write write_dstate = Write::overwrite;
};

void titans_forward_cuda(const TitansForward& args, const Launch& launch);
void titans_backward_cuda(const TitansBackward& args, const Launch& launch);
std::size_t titans_forward_cuda_workspace(const TitansForward& args);
std::size_t titans_backward_cuda_workspace(const TitansBackward& args);

// In the accumulator type: keep, momentum, rate and states.
struct TitansInputs {
  Var q, k;                  // [T, H, d_k]
  Var v;                     // [T, H, d_v]
  Var keep, momentum, rate;  // [T, H]
};

// The memory at the start of every document; w1 empty for the linear memory.
struct TitansWeights {
  Var w1;  // [H, d_k, m]
  Var w2;  // [H, m or d_k, d_v]
};

// Documents continue. At the start of a chunk (phase 0) Wc is not read: it is W.
struct TitansStart {
  Var state;                        // [N, H, 3, P]
  std::vector<std::int32_t> phase;  // [N]
};

struct TitansOutput {
  Var o;            // [T, H, d_v]
  Var final_state;  // [N, H, 3, P], or empty
};

// With a `start` the weights give shapes only. Gradients reach every input.
TitansOutput titans_memory(Tape& tape, const TitansInputs& inputs, const TitansWeights& weights, std::int64_t chunk,
                           const DocumentsPtr& documents, FinalState final_state, const TitansStart* start = nullptr);

// Reads without writing: o_t = f(q_t; W) with the weights, or with W of the token's document in a state.
struct TitansReadProblem {
  DType dtype;
  std::int64_t T, N, H, d_k, d_v, m;
  const void* q;                              // [T, H, d_k]
  const void* w1;                             // [H, d_k, m] or null
  const void* w2;                             // [H, m or d_k, d_v]
  const void* state;                          // memories, or null: the weights
  std::int64_t document_stride, head_stride;  // of the memories
  const std::int32_t* cu_seqlens;             // [N + 1]
};

struct TitansReadForward : TitansReadProblem {
  void* o = nullptr;  // [T, H, d_v]
};

struct TitansReadBackward : TitansReadProblem {
  const void* d_o = nullptr;  // [T, H, d_v]
  void* dq = nullptr;
  Write write_dq = Write::overwrite;
  void* dw1 = nullptr;
  Write write_dw1 = Write::overwrite;
  void* dw2 = nullptr;
  Write write_dw2 = Write::overwrite;
  void* dstate = nullptr;
  Write write_dstate = Write::overwrite;
};

void titans_read_forward_cuda(const TitansReadForward& args, const Launch& launch);
void titans_read_backward_cuda(const TitansReadBackward& args, const Launch& launch);
std::size_t titans_read_forward_cuda_workspace(const TitansReadForward& args);
std::size_t titans_read_backward_cuda_workspace(const TitansReadBackward& args);

// q [T, H, d_k] -> [T, H, d_v]. `state` is empty, [N, H, P], or [N, H, 3, P], of which W is read; with a state the
// weights give shapes only.
Var titans_read(Tape& tape, const Var& q, const TitansWeights& weights, const Var& state,
                const DocumentsPtr& documents);

}  // namespace weft
