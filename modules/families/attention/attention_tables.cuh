// Makes the tables of attention_work.h in the workspace.
#pragma once

#include "autograd/cuda/cuda_check.cuh"
#include "modules/families/attention/attention_work.h"

namespace weft::attention_cuda {

// Room of a table for tiles of `chunks.count`, in bytes.
template <class Tile>
std::size_t table_bytes(const ChunkView& chunks) {
  return static_cast<std::size_t>(chunks.count) * sizeof(Tile);
}

// Tiles of queries that walk many keys first: by descending index inside the document, then in row order.
void make_query_tiles(const AttentionRow& row, const ChunkView& chunks, std::int32_t block, bool sorted,
                      AttentionQueryTile* tiles, cudaStream_t stream);
// Tiles of keys: ascending inside a document, long documents first, the anchor's document before all others.
void make_key_tiles(const AttentionRow& row, const ChunkView& chunks, std::int32_t block, const ChunkView& query_chunks,
                    AttentionKeyTile* tiles, cudaStream_t stream);

}  // namespace weft::attention_cuda
