// Softmax attention over chosen blocks of keys: indices in, attention out. One softmax over the union of the blocks
// that a query has chosen, cut at what it may see. Selectors (selector.h) choose; nothing here knows how.
//
// T query rows, S key rows, H_Q query heads, H_KV key/value heads, G = H_Q / H_KV heads of a group, D width of queries
// and keys, D_V width of values, H_sel heads of the selection (1, H_KV or H_Q), n slots of a query.
#pragma once

#include <vector>

#include "autograd/tape.h"
#include "modules/families/attention/attention.h"

namespace weft {

class KeyValueCache;

// What key i of a document stands for: tokens [i stride, i stride + length). A query sees it from its last token on.
// Tokens themselves are {1, 1}; compressed keys stand for blocks that may overlap.
struct KeySpan {
  std::int32_t length = 1;
  std::int32_t stride = 1;

  // Keys that the first `tokens` tokens of a document make, which are those that token `tokens - 1` sees.
  std::int64_t count(std::int64_t tokens) const { return tokens < length ? 0 : (tokens - length) / stride + 1; }
};

// Rows of a packed row's keys: document n has keys [rows[n], rows[n + 1]).
std::vector<std::int32_t> key_rows(const Documents& documents, KeySpan span);
// Rows that whole rows of documents get: those of key_rows(), or on a GPU as many as the row as one document has, which
// is the most for any cut, so that a recorded step serves all. Rows beyond key_rows() mean nothing and are read by
// none.
std::int64_t key_room(const Tape& tape, const Documents& documents, KeySpan span);

// One document: where its queries lie and their positions counted from its beginning, and where its keys lie.
struct BlockSparseDocument {
  std::int32_t query_row = 0, query_count = 0, query_position = 0;
  std::int32_t key_row = 0, key_count = 0;
  CachedKeys cached;  // if it has pages, all keys lie there and not in k, v; forward only
};

// Documents of a packed row with the keys of key_rows(), or with those of a cache.
std::vector<BlockSparseDocument> packed_documents(const Documents& documents, KeySpan span);
std::vector<BlockSparseDocument> cached_documents(const Documents& documents, KeySpan span, const KeyValueCache& cache);

struct BlockSparseShape {
  std::int64_t T, S, H_Q, H_KV, D, D_V;
  std::int64_t H_sel, n;  // 0 and 0: every query attends to every block it sees
};

// What both directions read.
struct BlockSparseInputs {
  DType dtype;
  BlockSparseShape shape;
  std::int64_t block;  // keys of a block
  KeySpan span;
  double scale;                          // of the logits
  const BlockSparseDocument* documents;  // on the CPU
  std::int64_t document_count;
  const std::int32_t* cu_seqlens;  // [N + 1] on a device: documents from position 0 on, keys as in key_rows()
  std::int64_t N;
  const std::int32_t* idx;  // [T, H_sel, n] or null (every block): ascending, distinct, then -1
  const void* q;            // [T, H_Q, D]
  const void* k;            // [S, H_KV, D]
  const void* v;            // [S, H_KV, D_V]
};

struct BlockSparseForward {
  BlockSparseInputs in;
  void* o;    // [T, H_Q, D_V]; 0 for a query that sees nothing
  void* lse;  // [T, H_Q] natural log of the denominator; -infinity for a query that sees nothing
};
void block_sparse_forward_cuda(const BlockSparseForward& args, const Launch& launch);
std::size_t block_sparse_forward_cuda_workspace(const BlockSparseForward& args);

struct BlockSparseBackward {
  BlockSparseInputs in;
  const void *o, *lse;  // results of the forward pass
  const void* d_o;      // [T, H_Q, D_V]
  void* dq;             // [T, H_Q, D] or null
  Write write_dq;
  void* dk;  // [S, H_KV, D] or null
  Write write_dk;
  void* dv;  // [S, H_KV, D_V] or null
  Write write_dv;
};
void block_sparse_backward_cuda(const BlockSparseBackward& args, const Launch& launch);
std::size_t block_sparse_backward_cuda_workspace(const BlockSparseBackward& args);

struct AttentionWithStatistics {
  Var o;       // [T, H_Q, D_V]
  Tensor lse;  // [T, H_Q] in accumulator_dtype, not differentiable
};

// q [T, H_Q, D], k [T, H_KV, D], v [T, H_KV, D_V], idx i32 [T, H_sel, n]: for each query the blocks of `block` tokens
// of its own document that it attends to, ascending and distinct, padded with -1; its own block is cut behind it. A
// block that begins after the query is a defect (Error, internal). Logits are scaled by D^(-1/2). No gradient through
// idx.
AttentionWithStatistics block_sparse_attention(Tape& tape, const Var& q, const Var& k, const Var& v, const Tensor& idx,
                                               std::int64_t block, const DocumentsPtr& documents);

// Full attention to keys that stand for spans of tokens: k [S, H_KV, D], v [S, H_KV, D_V] with the rows of key_rows(),
// or those of key_room(), of which the ones beyond get gradients of zero.
AttentionWithStatistics span_attention(Tape& tape, const Var& q, const Var& k, const Var& v, KeySpan span,
                                       const DocumentsPtr& documents);

// Inference: the keys and values of document n, its new ones included, are those of sequence n of the cache, of H_KV
// heads and values of width D_V; its queries start at position documents.pos0(n).
struct CachedAttention {
  Tensor o, lse;
};
CachedAttention block_sparse_attention_cached(Tape& tape, const Tensor& q, const KeyValueCache& cache,
                                              std::int64_t H_KV, std::int64_t D_V, const Tensor& idx,
                                              std::int64_t block, const Documents& documents);
CachedAttention span_attention_cached(Tape& tape, const Tensor& q, const KeyValueCache& cache, std::int64_t H_KV,
                                      std::int64_t D_V, KeySpan span, const Documents& documents);

}  // namespace weft
