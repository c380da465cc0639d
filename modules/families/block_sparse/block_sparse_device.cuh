// What the CUDA kernels of the family share: where a query's keys lie, and rows of any width in the lanes of a warp.
//
// T query rows, N documents, B blocks of keys of a row (documents begin new ones), R query rows of one list entry.
#pragma once

#include <cstdint>

#include "autograd/cuda/cuda_check.cuh"
#include "autograd/cuda/map_cuda.cuh"
#include "autograd/cuda/pack.cuh"
#include "autograd/tile/reduce.cuh"
#include "modules/families/block_sparse/block_sparse_attention.h"

namespace weft::block_sparse {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;
inline constexpr int kWidest = 256;               // of a head
inline constexpr int kColumns = kWidest / kWarp;  // of a lane
inline constexpr int kKeyTile64 = 64;             // keys that a work item of the backward pass holds

inline unsigned blocks_for(std::int64_t items, std::int64_t per_block) {
  return static_cast<unsigned>((items + per_block - 1) / per_block);
}

// Cuts a workspace into arrays, each on 256 bytes; with a null base it only counts.
class DeviceCarver {
 public:
  explicit DeviceCarver(void* base) : base_(static_cast<std::byte*>(base)) {}
  template <class T>
  T* take(std::int64_t elements) {
    std::byte* piece = base_ == nullptr ? nullptr : base_ + used_;
    used_ += (static_cast<std::size_t>(elements) * sizeof(T) + 255) / 256 * 256;
    return reinterpret_cast<T*>(piece);
  }
  std::size_t used() const { return used_; }

 private:
  std::byte* base_;
  std::size_t used_ = 0;
};

// A packed row in device memory; entry N of each table is the total.
struct RowTables {
  const std::int32_t* cu_seqlens;
  const std::int32_t* key_row;      // of a document's first key
  const std::int32_t* first_block;  // of a document, among all blocks of the row
  int N;
  KeySpan span;
};
// Fills key_row and first_block, [N + 1] each, for blocks of `block` keys.
RowTables lay_out_row(const std::int32_t* cu_seqlens, std::int64_t N, KeySpan span, std::int64_t block,
                      std::int32_t* key_row, std::int32_t* first_block, const Stream& stream);

// Blocks of keys that a row of S keys in N documents has at most.
inline std::int64_t most_blocks(std::int64_t S, std::int64_t N, std::int64_t block) {
  return S / block + N;
}

__device__ inline int span_count(KeySpan span, int tokens) {
  return tokens < span.length ? 0 : (tokens - span.length) / span.stride + 1;
}

// The last i in [0, count) with table[i] <= value; table[0] <= value.
__device__ inline int last_at_most(const std::int32_t* table, int count, int value) {
  int low = 0, high = count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (table[middle] <= value) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

struct QueryPlace {
  int document, position;
  int key_row;  // of the document's first key
  int visible;  // keys of the document that the query sees
};
__device__ inline QueryPlace place_of(const RowTables& row, int token) {
  const int n = last_at_most(row.cu_seqlens, row.N, token);
  const int position = token - row.cu_seqlens[n];
  return {n, position, row.key_row[n], span_count(row.span, position + 1)};
}

// The keys of one query, slot by slot.
struct Choices {
  const std::int32_t* idx;  // [n] of the query, or null: all keys are one block
  int n;
  int block;
  int visible;

  __device__ int slots() const { return idx == nullptr ? 1 : n; }
  __device__ int first(int slot) const {
    if (idx == nullptr) return 0;
    const int j = idx[slot];
    return j < 0 || j >= (visible + block - 1) / block ? visible : j * block;
  }
  __device__ int last(int first_key) const { return idx == nullptr ? visible : min(first_key + block, visible); }
};

// Lists of queries that a selection has for each key/value head, and their rows.
struct Selection {
  const std::int32_t* idx;  // [T, lists, n] or null: every query sees every key
  int lists, n, block;
  int H_Q, H_KV;

  __host__ __device__ int heads_of_group() const { return H_Q / H_KV; }
  __host__ __device__ int rows_of_entry() const { return lists > H_KV ? 1 : heads_of_group(); }
  // Key/value heads have lists of their own, or share one.
  __host__ __device__ int groups() const { return lists == 1 ? 1 : H_KV; }
  __device__ Choices of(std::int64_t token, int query_head, int visible) const {
    const int list = lists == 1 ? 0 : query_head / (H_Q / lists);
    return {idx == nullptr ? nullptr : idx + (token * lists + list) * n, n, block, visible};
  }
};

inline Selection selection_of(const BlockSparseInputs& in) {
  return {in.idx,
          in.idx == nullptr ? 1 : static_cast<int>(in.shape.H_sel),
          in.idx == nullptr ? 1 : static_cast<int>(in.shape.n),
          in.idx == nullptr ? kKeyTile64 : static_cast<int>(in.block),
          static_cast<int>(in.shape.H_Q),
          static_cast<int>(in.shape.H_KV)};
}

// Packs of 16 bytes fit rows of this width.
template <class T>
bool rows_in_packs(std::int64_t width, std::initializer_list<const void*> bases) {
  bool fit = width * sizeof(T) % 16 == 0;
  for (const void* base : bases) fit = fit && reinterpret_cast<std::uintptr_t>(base) % 16 == 0;
  return fit;
}

// A row in the lanes' registers: lane l holds channels l, l + 32, ...
struct LaneRow {
  float x[kColumns];

  __device__ void clear() {
#pragma unroll
    for (float& value : x) value = 0.0f;
  }
  __device__ void scale(float factor) {
#pragma unroll
    for (float& value : x) value *= factor;
  }
  template <class T>
  __device__ void add(const T* row, int width, float factor, int lane) {
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const int c = lane + i * kWarp;
      if (c < width) x[i] += factor * to_float(row[c]);
    }
  }
  template <class T>
  __device__ void store(T* row, int width, float factor, Write write, int lane) const {
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const int c = lane + i * kWarp;
      if (c >= width) continue;
      const float before = write == Write::overwrite ? 0.0f : to_float(row[c]);
      row[c] = from_float<T>(before + factor * x[i]);
    }
  }
};

// Puts a row into shared memory as floats.
template <class T>
__device__ void share_row(const T* row, int width, float* to, int lane) {
  for (int c = lane; c < width; c += kWarp) to[c] = to_float(row[c]);
}

// The product of a lane's own row with one that all lanes share.
template <class T>
__device__ float dot_shared(const T* row, const float* shared, int width, bool packs) {
  constexpr int kN = 16 / static_cast<int>(sizeof(T));
  float sum = 0.0f;
  if (packs) {
    for (int c = 0; c < width; c += kN) {
      float x[kN];
      load_pack(row + c, x);
#pragma unroll
      for (int i = 0; i < kN; ++i) sum += x[i] * shared[c + i];
    }
  } else {
    for (int c = 0; c < width; ++c) sum += to_float(row[c]) * shared[c];
  }
  return sum;
}

}  // namespace weft::block_sparse
