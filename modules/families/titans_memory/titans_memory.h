// The linear neural memory of Titans (arXiv:2501.00663): a matrix trained by gradient descent with momentum and
// forgetting while the sequence is read. One head, inner loss of a token |k W - v|^2 / 2:
//
//   Z_t = mu_t Z_{t-1} - theta_t k_t^T (k_t Wc - v_t)      W_t = keep_t W_{t-1} + Z_t      o_t = q_t W_t
//
// Wc is W at the start of the token's chunk of C tokens: the chunk length is part of the model. README.md derives the
// chunked form.
//
// T tokens of the packed row, N documents, H heads, d_k and d_v head widths of keys and values.
#pragma once

#include "autograd/documents.h"
#include "autograd/tape.h"
#include "modules/families/final_state.h"

namespace weft {

struct TitansProblem {
  DType dtype;
  std::int64_t T, N, H, d_k, d_v;
  std::int64_t C;
  const void* q;                   // [T, H, d_k]
  const void* k;                   // [T, H, d_k]
  const void* v;                   // [T, H, d_v]
  const void* keep;                // [T, H] in [0, 1]
  const void* momentum;            // [T, H] mu, in [0, 1]
  const void* rate;                // [T, H] theta
  const void* weights;             // [H, d_k, d_v] at the start of a document
  const void* state;               // [N, H, 3, d_k, d_v]: W, Z, Wc; or null: start from weights, 0
  const std::int32_t* cu_seqlens;  // [N + 1]
  const std::int32_t* phase;       // [N] tokens of the current chunk that the state has seen; null: 0
};

struct TitansForward : TitansProblem {
  void* o = nullptr;            // [T, H, d_v]
  void* final_state = nullptr;  // [N, H, 3, d_k, d_v] or null: not wanted
};

// A null gradient is not wanted. Nothing but the inputs is saved.
struct TitansBackward : TitansProblem {
  const void* d_o = nullptr;           // [T, H, d_v]
  const void* dfinal_state = nullptr;  // [N, H, 3, d_k, d_v] or null: zero
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
  void* dweights = nullptr;
  Write write_dweights = Write::overwrite;
  void* dstate = nullptr;
  Write write_dstate = Write::overwrite;
};

std::size_t titans_forward_workspace(const TitansForward& args);
std::size_t titans_backward_workspace(const TitansBackward& args);

struct TitansInputs {
  Var q, k;                  // [T, H, d_k]
  Var v;                     // [T, H, d_v]
  Var keep, momentum, rate;  // [T, H]
};

// Documents continue. At the start of a chunk (phase 0) Wc is not read: it is W.
struct TitansStart {
  Var state;                        // [N, H, 3, d_k, d_v]
  std::vector<std::int32_t> phase;  // [N]
};

struct TitansOutput {
  Var o;            // [T, H, d_v]
  Var final_state;  // [N, H, 3, d_k, d_v], or empty
};

// With a `start` the weights are not used and may be empty. Gradients reach every input.
TitansOutput titans_memory(Tape& tape, const TitansInputs& inputs, const Var& weights, std::int64_t chunk,
                           const DocumentsPtr& documents, FinalState final_state, const TitansStart* start = nullptr);

// Reads without writing: o_t = q_t W of the token's document. q [T, H, d_k]; `memory` is [H, d_k, d_v], the same for
// all documents, one for each [N, H, d_k, d_v], or states [N, H, 3, d_k, d_v], of which W is read.
struct TitansReadForward {
  DType dtype;
  std::int64_t N, H, d_k, d_v;
  std::int64_t document_stride, head_stride;  // of the matrices in memory
  const void* q;
  const void* memory;
  const std::int32_t* cu_seqlens;
  void* o;  // [T, H, d_v]
};

struct TitansReadBackward {
  DType dtype;
  std::int64_t N, H, d_k, d_v;
  std::int64_t document_stride, head_stride;  // of the matrices in memory
  const void* q;
  const void* memory;
  const std::int32_t* cu_seqlens;
  const void* d_o;
  void* dq;
  Write write_dq;
  void* dmemory;
  std::int64_t memory_elements;
  Write write_dmemory;
};
std::size_t titans_read_backward_workspace(const TitansReadBackward& args);

Var titans_read(Tape& tape, const Var& q, const Var& memory, const DocumentsPtr& documents);

}  // namespace weft
