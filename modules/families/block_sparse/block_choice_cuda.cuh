// What the CUDA kernels of block_choice.h share: a slab of queries, their scores of blocks, and how summaries add up.
#pragma once

#include "modules/families/block_sparse/block_choice.h"
#include "modules/families/block_sparse/block_sparse_mma.cuh"

namespace weft::block_sparse {

struct ChoiceArguments {
  RowTables row;
  BlockScore score;
  int begin, end;       // queries of the slab
  int H_Q, H_KV, D, G;  //
  int lists;            // H_KV, or H_Q for logits
  int block, selected, first, local, slots;
  std::int64_t dense;
  int strides, per_block;  // of a summary, and strides of a block
  int blocks;              // row length of the scores
  float unit;              // logits in powers of 2
  bool packs;
  const void *q, *k;
  const float* lse;   // [T, H_Q]
  float* scores;      // [end - begin, lists, blocks]
  std::int32_t* idx;  // [T, lists, slots]

  __device__ bool takes_all(int position) const { return position < dense || position / block < selected; }
  __device__ float* score_row(int token, int list) const {
    return scores + (static_cast<std::int64_t>(token - begin) * lists + list) * blocks;
  }
};

// Adds the probabilities p[0, count) of the summaries from `key` on to the scores of the blocks whose tokens they stand
// for. Tiles of a row come in order; a block whose first summary is in the tile starts anew. All lanes call it.
__device__ inline void add_to_blocks(const ChoiceArguments& a, const float* p, int key, int count, float* scores,
                                     int lane) {
  const int last_block = (key + count - 1 + a.strides - 1) / a.per_block;
  for (int j = key / a.per_block + lane; j <= min(last_block, a.blocks - 1); j += kWarp) {
    const int first = j * a.per_block - (a.strides - 1);  // summary that shares a stride with the block
    float value = key > 0 && first < key ? scores[j] : 0.0f;
    for (int i = max(first, key); i < min((j + 1) * a.per_block, key + count); ++i) {
      if (a.score == BlockScore::overlap_max) {
        value = fmaxf(value, p[i - key]);
      } else {
        const int shared = min(i + a.strides, (j + 1) * a.per_block) - max(i, j * a.per_block);
        value += static_cast<float>(shared) * p[i - key];
      }
    }
    scores[j] = value;
  }
}

// Blocks up to the query's own that no summary stands for yet score nothing.
__device__ inline void clear_rest(const ChoiceArguments& a, int visible, int position, float* scores, int lane) {
  const int touched = visible == 0 ? 0 : (visible + a.strides - 2) / a.per_block + 1;
  for (int j = touched + lane; j <= position / a.block; j += kWarp) scores[j] = 0.0f;
}

// Floats in the order of unsigned integers; -0 is 0.
__device__ inline unsigned ordered(float x) {
  const unsigned bits = __float_as_uint(x + 0.0f);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

// Writes one row of idx; all lanes of a warp call it. The threshold that just enough scores reach is found bit by bit,
// then one pass in the order of blocks, which is also that of ties.
__device__ inline void take_best_of_row(const ChoiceArguments& a, int token, int list, int position, int lane) {
  const int current = position / a.block;
  std::int32_t* const idx = a.idx + (static_cast<std::int64_t>(token) * a.lists + list) * a.slots;
  if (a.takes_all(position)) {
    for (int j = lane; j < a.slots; j += kWarp) idx[j] = j <= current ? j : -1;
    return;
  }
  const int first_end = min(a.first, current + 1);
  const int local_begin = max(first_end, current - a.local + 1);
  const int room = a.selected - first_end - (current + 1 - local_begin);
  const float* const scores = a.score_row(token, list);
  const auto count = [&](unsigned least) {
    int own = 0;
    for (int j = first_end + lane; j < local_begin; j += kWarp) own += ordered(scores[j]) >= least ? 1 : 0;
    return static_cast<int>(__reduce_add_sync(kAllLanes, static_cast<unsigned>(own)));
  };
  unsigned threshold = 0;
  int reached = local_begin - first_end;
  for (int bit = 31; bit >= 0 && reached != room; --bit) {
    const unsigned next = threshold | (1u << bit);
    const int there = count(next);
    if (there >= room) {
      threshold = next;
      reached = there;
    }
  }
  // More may reach the threshold than there is room for: then the first of those that meet it exactly.
  const int above = threshold == 0xffffffffu ? 0 : count(threshold + 1);
  int equals = room - above, to = first_end;
  for (int j = lane; j < first_end; j += kWarp) idx[j] = j;
  for (int begin = first_end; begin < local_begin; begin += kWarp) {
    const int j = begin + lane;
    const unsigned key = j < local_begin ? ordered(scores[j]) : 0u;
    const bool equal = j < local_begin && key == threshold;
    const unsigned meet = __ballot_sync(kAllLanes, equal);
    const unsigned before = (1u << lane) - 1;
    const bool taken = j < local_begin && (key > threshold || (equal && __popc(meet & before) < equals));
    equals -= __popc(meet);
    const unsigned all = __ballot_sync(kAllLanes, taken);
    if (taken) idx[to + __popc(all & before)] = j;
    to += __popc(all);
  }
  for (int j = local_begin + lane; j <= current; j += kWarp) idx[to + j - local_begin] = j;
  for (int j = to + current + 1 - local_begin + lane; j < a.slots; j += kWarp) idx[j] = -1;
}

// Tensor-core kernels for bf16 of a width of 64 or 128.
inline bool choice_mma_fits(const BlockChoice& args) {
  return args.dtype == DType::bf16 && (args.D == 64 || args.D == 128);
}
void choice_denominators_mma(const ChoiceArguments& a, float* lse, std::int64_t T, const Stream& stream);
void choice_scores_mma(const ChoiceArguments& a, const Stream& stream);

// Hopper: softmax scores for groups of 16 heads; `tiles` counts tiles of choice_hopper_queries() queries.
bool choice_hopper_fits(const BlockChoice& args);
int choice_hopper_queries();
void choice_scores_hopper(const ChoiceArguments& a, const RowTables& tiles, const Stream& stream);

}  // namespace weft::block_sparse
