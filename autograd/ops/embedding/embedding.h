// Embedding: y[t] = table[token[t]].
//
// T tokens, V rows of the table, D width.
#pragma once

#include "autograd/tape.h"

namespace weft {

struct EmbeddingForward {
  DType dtype;
  std::int64_t T, V, D;
  const std::int32_t* tokens;  // [T]
  const void* table;           // [V, D]
  void* y;                     // [T, D]
};

// dtable[v] = sum over t with token[t] = v of dy[t], in the order of t.
struct EmbeddingBackward {
  DType dtype;
  std::int64_t T, V, D;
  const std::int32_t* tokens;  // [T]
  const void* dy;              // [T, D]
  void* dtable;                // [V, D] accumulator type
  Write write_dtable;
};

void embedding_forward_cuda(const EmbeddingForward& args, const Launch& launch);
void embedding_backward_cuda(const EmbeddingBackward& args, const Launch& launch);
std::size_t embedding_backward_cuda_workspace(const EmbeddingBackward& args);

// tokens i32 [T] where the tape computes, table [V, D]. Returns y [T, D]. On the CPU a token outside [0, V) is an Error
// (config) that names it and its index; a GPU cannot say so: its row becomes NaN, and whoever makes rows checks them.
Var embedding(Tape& tape, const Tensor& tokens, const Var& table);

}  // namespace weft
