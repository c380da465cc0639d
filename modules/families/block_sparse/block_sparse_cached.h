// What block_sparse_attention_cached(), span_attention_cached() and choose_blocks_cached() do on CUDA: each query looks
// its keys up in the pages of a cache.
#pragma once

#include "modules/families/attention/key_value_cache.h"
#include "modules/families/block_sparse/block_choice.h"

namespace weft {

// New queries of N sequences, where kernels read them.
struct CachedQueries {
  DType dtype;
  std::int64_t T, N, H_Q, H_KV, D;
  const std::int32_t* cu_seqlens;  // [N + 1]
  const std::int32_t* positions;   // [T]
  const void* q;                   // [T, H_Q, D]
  CachedTable keys;                // those of the new tokens included
  std::int64_t most_keys;          // of a sequence
  KeySpan span;                    // of a key
};

CachedQueries cached_queries(const Stream& stream, const Tensor& q, const KeyValueCache& cache, std::int64_t H_KV,
                             KeySpan span, const Documents& documents);

struct CachedBlockAttention {
  CachedQueries in;
  std::int64_t D_V, block;
  std::int64_t H_sel, n;    // 0 and 0: every key that a query sees
  const std::int32_t* idx;  // [T, H_sel, n] or null
  void* o;                  // [T, H_Q, D_V]
  void* lse;                // [T, H_Q]
};
void cached_block_attention_cuda(const CachedBlockAttention& args, const Launch& launch);
std::size_t cached_block_attention_cuda_workspace(const CachedBlockAttention& args);

struct CachedBlockChoice {
  CachedQueries in;  // keys: summaries
  BlockRule rule;
  BlockScore score;
  std::int64_t blocks;  // of the longest sequence
  const void* lse;      // [T, H_Q] of the softmax over the summaries, or null
  std::int32_t* idx;    // [T, H_KV or (logit) H_Q, slots]
};
void cached_block_choice_cuda(const CachedBlockChoice& args, const Launch& launch);
std::size_t cached_block_choice_cuda_workspace(const CachedBlockChoice& args);

}  // namespace weft
