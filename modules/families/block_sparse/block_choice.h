// Choosing blocks of tokens by scores against summaries of them, with memory linear in the length: for each query, all
// scores of its blocks at once, then the best. Not differentiable.
//
// T queries, S summaries, H_Q query heads, H_KV summary heads, G = H_Q / H_KV, D width. A summary stands for a span of
// tokens and counts once the query has passed it; block j of a document is its tokens [j block, (j + 1) block).
#pragma once

#include <algorithm>

#include "modules/families/block_sparse/block_sparse_attention.h"

namespace weft {

// Which blocks a query takes. Candidates are the blocks up to its own. Forced ones come first, then larger scores,
// ties to the smaller index: a total order, so the choice depends on nothing but the scores.
struct BlockRule {
  std::int64_t block;      // tokens of a block
  std::int64_t selected;   // blocks of a query, forced ones included
  std::int64_t first;      // forced: the first blocks of the document
  std::int64_t local;      // forced: the query's own block and those before it, so many in all
  std::int64_t dense = 0;  // queries at positions below it take every block

  std::int64_t slots() const { return std::max(selected, (dense + block - 1) / block); }
  // The same for documents of at most `length` tokens: no slots for blocks that none of them has.
  BlockRule within(std::int64_t length) const;
  bool takes_all(std::int64_t position) const { return position < dense || position / block < selected; }
};

enum class BlockScore : std::uint8_t {
  overlap_sum,  // softmax over the summaries, summed over the group's heads and over the strides that a block shares
                // with them: the mapping of NSA. One choice for each key/value head
  overlap_max,  // the same with the largest in place of the sum over strides: InfLLM-v2
  logit,        // the product of query and summary, for each query head; summaries are the blocks themselves: MoBA
};

struct BlockChoice {
  DType dtype;
  std::int64_t T, S, H_Q, H_KV, D;
  BlockRule rule;
  KeySpan span;  // of a summary; its stride divides the block
  BlockScore score;
  const BlockSparseDocument* documents;  // on the CPU; keys: summaries
  std::int64_t document_count;
  const std::int32_t* cu_seqlens;  // [N + 1] on a device
  std::int64_t N;
  const void* q;      // [T, H_Q, D]
  const void* k;      // [S, H_KV, D] summaries
  const void* lse;    // [T, H_Q] (accumulator_dtype) of the softmax over them, or null: found here
  std::int32_t* idx;  // [T, H_KV or (logit) H_Q, slots]
};
void block_choice_cuda(const BlockChoice& args, const Launch& launch);
std::size_t block_choice_cuda_workspace(const BlockChoice& args);

// q [T, H_Q, D], summaries k [S, H_KV, D] with the rows of key_rows() or key_room(), lse [T, H_Q] or undefined -> idx
// i32 [T, H_KV or H_Q, slots], ascending and padded with -1; slots are those of the rule within the longest document,
// on a device within T tokens, so that they do not depend on how the row is cut.
Tensor choose_blocks(Tape& tape, const Tensor& q, const Tensor& k, const Tensor& lse, const BlockRule& rule,
                     KeySpan span, BlockScore score, const Documents& documents);

// The same with the summaries of all tokens so far in a cache; `H_KV` as in the cache.
Tensor choose_blocks_cached(Tape& tape, const Tensor& q, const KeyValueCache& summaries, std::int64_t H_KV,
                            const Tensor& lse, const BlockRule& rule, KeySpan span, BlockScore score,
                            const Documents& documents);

}  // namespace weft
