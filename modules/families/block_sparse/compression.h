// Compressed keys and values: one row for each block of `length` consecutive tokens of a document, a block every
// `stride` tokens; only whole blocks count. For a block's rows X [l, D] of one head
//   mean:    mean_rows(X)
//   linear:  mean_rows(X) + W1^T vec(X)
//   mlp:     mean_rows(X) + W2^T silu(W1^T vec(X + pe) + b1)
// with W2 (or, for linear, W1) zero at first: learning starts from the mean. Under a linear map positions in the block
// would add a constant, which attention to the keys does not even see; they belong to the MLP.
//
// T tokens, H heads, D width, l and delta = length and stride, r width of the hidden layer (linear: r = D), S blocks of
// the row, in the order of documents: key_rows().
#pragma once

#include "modules/families/block_sparse/block_sparse_attention.h"

namespace weft {

// One document: where its tokens and its blocks lie.
struct CompressionDocument {
  std::int32_t token = 0, tokens = 0;
  std::int32_t block = 0, blocks = 0;
};

struct CompressionInputs {
  DType dtype;
  std::int64_t T, S, H, D, r;
  KeySpan span;
  const CompressionDocument* documents;  // on the CPU
  std::int64_t document_count;
  const std::int32_t* cu_seqlens;  // [N + 1] on a device; blocks lie as in key_rows()
  std::int64_t N;
  const void* x;   // [T, H, D]
  const void* pe;  // [H, l, D] (accumulator_dtype) or null: mean, linear
  const void* w1;  // [H, l D, r] or null: mean
  const void* b1;  // [H, r] (accumulator_dtype) or null: mean, linear
  const void* w2;  // [H, r, D] or null: mean, linear
};

struct CompressionForward {
  CompressionInputs in;
  void* y;  // [S, H, D]
};
void compression_forward_cuda(const CompressionForward& args, const Launch& launch);
std::size_t compression_forward_cuda_workspace(const CompressionForward& args);

struct CompressionBackward {
  CompressionInputs in;
  const void* dy;  // [S, H, D]
  void* dx;        // [T, H, D] or null
  Write write_dx;
  void *dpe, *dw1, *db1, *dw2;  // shapes of the inputs, accumulator_dtype, or null
  Write write_dpe, write_dw1, write_db1, write_dw2;
};
void compression_backward_cuda(const CompressionBackward& args, const Launch& launch);
std::size_t compression_backward_cuda_workspace(const CompressionBackward& args);

// Empty Vars where a form has no such weight.
struct CompressionWeights {
  Var pe, w1, b1, w2;
};

// x [T, H, D] -> [S, H, D], of `rows` rows: those of key_rows() or key_room(). Rows beyond the blocks hold any finite
// numbers, and expect gradients of zero.
Var compress(Tape& tape, const Var& x, const CompressionWeights& weights, KeySpan span, const DocumentsPtr& documents,
             std::int64_t rows);
// Those of key_rows().
Var compress(Tape& tape, const Var& x, const CompressionWeights& weights, KeySpan span, const DocumentsPtr& documents);

}  // namespace weft
