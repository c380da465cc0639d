#include "modules/families/attention/attention_tables.cuh"

namespace weft::attention_cuda {
namespace {

constexpr int kThreads = 128;

struct DocumentView {
  const std::int32_t* cu_seqlens;
  const std::int32_t* pos0;
  std::int32_t N;
  bool anchored;

  explicit DocumentView(const AttentionRow& row)
      : cu_seqlens(row.cu_seqlens),
        pos0(row.pos0),
        N(static_cast<std::int32_t>(row.document_count)),
        anchored(row.anchored) {}
  __device__ std::int32_t begin(std::int32_t n) const { return cu_seqlens[n]; }
  __device__ std::int32_t length(std::int32_t n) const { return cu_seqlens[n + 1] - cu_seqlens[n]; }
};

__global__ void query_tiles(DocumentView d, const Chunk* chunks, const std::int32_t* offset, std::int32_t count,
                            std::int32_t block, bool sorted, AttentionQueryTile* tiles) {
  const std::int32_t c = static_cast<std::int32_t>(blockIdx.x) * kThreads + static_cast<std::int32_t>(threadIdx.x);
  if (c >= count) return;
  const Chunk chunk = chunks[c];
  AttentionQueryTile t{};
  std::int32_t at = c;
  if (chunk.begin < chunk.end) {
    const std::int32_t n = chunk.document;
    t.row = chunk.begin;
    t.count = chunk.end - chunk.begin;
    t.position = d.pos0[n] + chunk.begin - d.begin(n);
    t.key_row = d.begin(n);
    t.key_begin = d.pos0[n];
    t.key_end = d.pos0[n] + d.length(n);
    t.anchor_row = d.anchored && n > 0 ? 0 : -1;
    t.query_tiles = offset[n + 1] - offset[n];
    if (sorted) {
      at = 0;
      for (std::int32_t i = 0; i < d.N; ++i) {
        const std::int32_t more = (d.length(i) + block - 1) / block - chunk.index;
        at += max(0, more - 1) + (i < n && more > 0 ? 1 : 0);
      }
    }
  }
  tiles[at] = t;
}

__global__ void key_tiles(DocumentView d, const Chunk* chunks, std::int32_t count, std::int32_t block,
                          const std::int32_t* query_offset, AttentionKeyTile* tiles) {
  const std::int32_t c = static_cast<std::int32_t>(blockIdx.x) * kThreads + static_cast<std::int32_t>(threadIdx.x);
  if (c >= count) return;
  const Chunk chunk = chunks[c];
  AttentionKeyTile t{};
  std::int32_t at = c;
  if (chunk.begin < chunk.end) {
    const std::int32_t n = chunk.document;
    const bool anchor = d.anchored && n == 0;
    t.row = chunk.begin;
    t.count = chunk.end - chunk.begin;
    t.position = d.pos0[n] + chunk.begin - d.begin(n);
    t.query_tile = anchor ? 0 : query_offset[n];
    t.query_tiles = query_offset[anchor ? d.N : n + 1] - t.query_tile;
    t.query_position = d.pos0[n];
    t.anchor = anchor ? 1 : 0;
    at = chunk.index;
    const std::int32_t length = d.length(n);
    for (std::int32_t i = 0; i < d.N && !anchor; ++i) {
      const bool before = d.length(i) > length || (d.length(i) == length && i < n) || (d.anchored && i == 0);
      if (i != n && before) at += (d.length(i) + block - 1) / block;
    }
  }
  tiles[at] = t;
}

unsigned blocks_for(std::int64_t count) {
  return static_cast<unsigned>((count + kThreads - 1) / kThreads);
}

}  // namespace

void make_query_tiles(const AttentionRow& row, const ChunkView& chunks, std::int32_t block, bool sorted,
                      AttentionQueryTile* tiles, cudaStream_t stream) {
  query_tiles<<<blocks_for(chunks.count), kThreads, 0, stream>>>(
      DocumentView(row), chunks.chunks, chunks.document_offset, static_cast<std::int32_t>(chunks.count), block, sorted,
      tiles);
  WEFT_CHECK_LAUNCH();
}

void make_key_tiles(const AttentionRow& row, const ChunkView& chunks, std::int32_t block, const ChunkView& query_chunks,
                    AttentionKeyTile* tiles, cudaStream_t stream) {
  key_tiles<<<blocks_for(chunks.count), kThreads, 0, stream>>>(DocumentView(row), chunks.chunks,
                                                               static_cast<std::int32_t>(chunks.count), block,
                                                               query_chunks.document_offset, tiles);
  WEFT_CHECK_LAUNCH();
}

}  // namespace weft::attention_cuda
