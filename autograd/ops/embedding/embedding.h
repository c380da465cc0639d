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
  void* dtable;                // [V, D]
  Write write_dtable;
};
std::size_t embedding_backward_workspace(const EmbeddingBackward& args);

// tokens i32 [T], table [V, D]. Returns y [T, D]. A token outside [0, V) is an Error (config) that names it and its
// index.
Var embedding(Tape& tape, const Tensor& tokens, const Var& table);

}  // namespace weft
