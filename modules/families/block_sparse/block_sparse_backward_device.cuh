// What the CUDA kernels of the backward pass share: work items, and where sums over a list go.
#pragma once

#include "modules/families/block_sparse/block_plan_cuda.cuh"
#include "modules/families/block_sparse/block_sparse_mma.cuh"

namespace weft::block_sparse {

struct BackwardArguments {
  DevicePlan plan;
  int D, D_V;
  float scale, unit;  // of logits, and in powers of 2
  int tiles;          // of kKeyTile64 keys in a block
  const void *q, *k, *v, *o, *d_o;
  const float* lse;
  float* delta;  // [T, H_Q] <d_o, o>
  void *dq, *dk, *dv;
  Write write_dq, write_dk, write_dv;
  float* parts;  // [gridDim.y][parts][kKeyTile64][D + D_V] of lists that are cut
};

// Up to 64 keys of a block against a piece of its list. gridDim.y counts tiles, and key/value heads that share lists.
struct KeyWork {
  bool any = false;
  DevicePlan::Block block;
  int kv_head;
  int keys;                  // of the tile
  std::int64_t key;          // first row of k
  std::int64_t first, last;  // query rows of the list
  std::int64_t part = -1;    // or -1: nothing else adds to these keys
  int visible_before;        // keys of the document before the tile
};
__device__ inline KeyWork key_work(const BackwardArguments& a, int item) {
  const DevicePlan& plan = a.plan;
  KeyWork w;
  const int blocks = plan.group_blocks();
  if (item >= plan.item_begin[blocks]) return w;
  const int id = last_at_most(plan.item_begin, blocks, item);
  const int tile = static_cast<int>(blockIdx.y) % a.tiles;
  w.block = plan.block(id);
  w.kv_head = plan.selection.groups() == 1 ? static_cast<int>(blockIdx.y) / a.tiles : id / plan.B;
  w.keys = min(kKeyTile64, w.block.keys - tile * kKeyTile64);
  if (w.keys <= 0) return w;
  w.any = true;
  w.visible_before = w.block.key_begin + tile * kKeyTile64;
  w.key = w.block.key_row + w.visible_before;
  const int piece = item - plan.item_begin[id];
  const int R = plan.selection.rows_of_entry(), each = plan.entries_of_item(w.block.entries);
  w.first = static_cast<std::int64_t>(piece) * each * R;
  w.last = min(static_cast<std::int64_t>(piece + 1) * each, static_cast<std::int64_t>(w.block.entries)) * R;
  if (plan.item_begin[id + 1] - plan.item_begin[id] > 1) {
    w.part = static_cast<std::int64_t>(blockIdx.y) * plan.parts + plan.part_begin[id] + piece;
  }
  return w;
}

// Tensor-core kernels; widths that mma_fits().
void query_gradients_mma(const BackwardArguments& a, const Stream& stream);
// For keys that stand for spans, span_tiles_fit(); `tiles` counts tiles of kSpanRows / G queries.
void span_query_gradients_hopper(const BackwardArguments& a, const RowTables& tiles, const Stream& stream);
void key_gradients_mma(const BackwardArguments& a, dim3 grid, const Stream& stream);
void key_gradients_hopper(const BackwardArguments& a, dim3 grid, const Stream& stream);

}  // namespace weft::block_sparse
