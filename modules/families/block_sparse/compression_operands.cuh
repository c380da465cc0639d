// What the products of compression.h multiply, and where sums go: forward, then backward.
#pragma once

#include "modules/families/block_sparse/compression.h"
#include "modules/families/block_sparse/compression_product.cuh"

namespace weft::block_sparse::compression {

inline constexpr int kThreads = 256;

// What all operands know.
template <class T>
struct Shape {
  int S, H, D, r, l, stride;
  bool packs;  // widths are multiples of 8
  const T *x, *w1, *w2;
  const float *pe, *b1;
  const std::int32_t* tokens;  // [S] of each block, its first

  __device__ const T* token(std::int64_t token, int h) const { return x + (token * H + h) * D; }
};

__device__ inline float silu(float a) {
  return a / (1.0f + tile::exp2_fast(-a * tile::kLog2e));
}
__device__ inline float silu_slope(float a) {
  const float s = 1.0f / (1.0f + tile::exp2_fast(-a * tile::kLog2e));
  return s * (1.0f + a * (1.0f - s));
}

// Rows beyond the blocks take the first tokens of the row, since that many it has.
static __global__ void __launch_bounds__(kThreads) find_tokens(RowTables row, int S, std::int32_t* tokens) {
  const int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (i >= S) return;
  if (i >= row.key_row[row.N]) {
    tokens[i] = 0;
    return;
  }
  // Documents without a block begin where the next one with blocks does.
  const int n = last_at_most(row.key_row, row.N, i);
  tokens[i] = row.cu_seqlens[n] + (i - row.key_row[n]) * row.span.stride;
}

template <class T, class Out>
__global__ void __launch_bounds__(kThreads) find_means(Shape<T> s, Out* y) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int c = static_cast<int>(i % s.D), h = static_cast<int>(i / s.D % s.H);
  const std::int64_t block = i / s.D / s.H;
  if (block >= s.S) return;
  const T* x = s.token(s.tokens[block], h) + c;
  float sum = 0.0f;
  for (int o = 0; o < s.l; ++o) sum += to_float(x[static_cast<std::int64_t>(o) * s.H * s.D]);
  y[i] = from_float<Out>(sum / static_cast<float>(s.l));
}

// --- forward -------------------------------------------------------------------------------------------------------

// bias = b1 + W1^T vec(pe)
template <class T>
struct Bias {
  Shape<T> s;
  float* bias;  // [H, r]
  int N, K;

  __device__ float add(int h, int k, int n) const {
    const std::int64_t row = static_cast<std::int64_t>(h) * K + k;
    return s.pe[row] * to_float(s.w1[row * N + n]);
  }
  __device__ void store(int h, int n, float sum) const { bias[h * N + n] = s.b1[h * N + n] + sum; }
};

// hidden = W1^T vec(X) + bias, or (linear) y = mean + W1^T vec(X).
template <class T>
struct Hidden {
  Shape<T> s;
  const float *bias, *means;  // one of them
  float* hidden;              // [S, H, r]
  T* y;                       // [S, H, D]
  int M, N, K;
  bool packs = s.packs;
  static constexpr bool kAlongA = true, kAlongB = true;

  using Row = const T*;
  __device__ Row row(int h, int m) const { return s.token(s.tokens[m], h); }
  __device__ const T* a(int, Row row, int, int k) const {
    return row + static_cast<std::int64_t>(k / s.D) * s.H * s.D + k % s.D;
  }
  __device__ float map(float x) const { return x; }
  __device__ const T* b(int h, int k, int n) const { return s.w1 + (static_cast<std::int64_t>(h) * K + k) * N + n; }
  __device__ void store(int h, Row, int m, int n, float sum) const {
    const std::int64_t at = (static_cast<std::int64_t>(m) * s.H + h) * N + n;
    if (bias != nullptr) {
      hidden[at] = sum + bias[h * N + n];
    } else {
      y[at] = from_float<T>(means[at] + sum);
    }
  }
};

// y = mean + W2^T silu(hidden)
template <class T>
struct Output {
  Shape<T> s;
  const float *hidden, *means;
  T* y;
  int M, N, K;
  bool packs = s.packs;
  static constexpr bool kAlongA = true, kAlongB = true;

  using Row = const float*;
  __device__ Row row(int h, int m) const { return hidden + (static_cast<std::int64_t>(m) * s.H + h) * K; }
  __device__ const float* a(int, Row row, int, int k) const { return row + k; }
  __device__ float map(float x) const { return silu(x); }
  __device__ const T* b(int h, int k, int n) const { return s.w2 + (static_cast<std::int64_t>(h) * K + k) * N + n; }
  __device__ void store(int h, Row, int m, int n, float sum) const {
    const std::int64_t at = (static_cast<std::int64_t>(m) * s.H + h) * N + n;
    y[at] = from_float<T>(means[at] + sum);
  }
};

// --- backward ------------------------------------------------------------------------------------------------------

// da = (W2 dy) silu'(hidden), and z = silu(hidden) in the place of hidden.
template <class T>
struct HiddenGradient {
  Shape<T> s;
  const T* dy;
  float *hidden, *da;  // [S, H, r]
  int M, N, K;
  bool packs = s.packs;
  static constexpr bool kAlongA = true, kAlongB = false;

  using Row = const T*;
  __device__ Row row(int h, int m) const { return dy + (static_cast<std::int64_t>(m) * s.H + h) * K; }
  __device__ const T* a(int, Row row, int, int k) const { return row + k; }
  __device__ float map(float x) const { return x; }
  __device__ const T* b(int h, int k, int n) const { return s.w2 + (static_cast<std::int64_t>(h) * N + n) * K + k; }
  __device__ void store(int h, Row, int m, int n, float sum) const {
    const std::int64_t at = (static_cast<std::int64_t>(m) * s.H + h) * N + n;
    const float x = hidden[at];
    da[at] = sum * silu_slope(x);
    hidden[at] = silu(x);
  }
};

__device__ inline void put(float* to, float value, Write write) {
  *to = write == Write::overwrite ? value : *to + value;
}

// dW2 = sum_i z_i dy_i^T
template <class T>
struct OutputWeights {
  Shape<T> s;
  const T* dy;
  const float* z;
  float* dw2;  // [H, r, D]
  Write write;
  int M, N, K;
  bool packs = s.packs;
  static constexpr bool kAlongA = false, kAlongB = true;

  struct Row {};
  __device__ Row row(int, int) const { return {}; }
  __device__ const float* a(int h, Row, int m, int k) const {
    return z + (static_cast<std::int64_t>(k) * s.H + h) * M + m;
  }
  __device__ float map(float x) const { return x; }
  __device__ const T* b(int h, int k, int n) const { return dy + (static_cast<std::int64_t>(k) * s.H + h) * N + n; }
  __device__ void store(int h, Row, int m, int n, float sum) const {
    put(dw2 + (static_cast<std::int64_t>(h) * M + m) * N + n, sum, write);
  }
};

// dW1 = sum_i vec(X_i) da_i^T + vec(pe) (sum_i da_i)^T; Da: float, or T where da is dy.
template <class T, class Da>
struct HiddenWeights {
  Shape<T> s;
  const Da* da;
  const float* da_sum;  // [H, r], or null without pe
  float* dw1;           // [H, l D, r]
  Write write;
  int M, N, K;
  bool packs = s.packs;
  static constexpr bool kAlongA = false, kAlongB = true;

  using Row = std::int64_t;  // of x, from the block's first token on
  __device__ Row row(int h, int m) const { return (static_cast<std::int64_t>(m / s.D) * s.H + h) * s.D + m % s.D; }
  __device__ const T* a(int, Row row, int, int k) const {
    return s.x + static_cast<std::int64_t>(s.tokens[k]) * s.H * s.D + row;
  }
  __device__ float map(float x) const { return x; }
  __device__ const Da* b(int h, int k, int n) const { return da + (static_cast<std::int64_t>(k) * s.H + h) * N + n; }
  __device__ void store(int h, Row, int m, int n, float sum) const {
    const std::int64_t at = static_cast<std::int64_t>(h) * M + m;
    if (da_sum != nullptr) sum += s.pe[at] * da_sum[h * N + n];
    put(dw1 + at * N + n, sum, write);
  }
};

// da_sum = sum_i da_i, which is db1.
struct HiddenSums {
  const float* da;
  float *da_sum, *db1;
  Write write;
  int H, N, K;

  __device__ float add(int h, int k, int n) const { return da[(static_cast<std::int64_t>(k) * H + h) * N + n]; }
  __device__ void store(int h, int n, float sum) const {
    da_sum[h * N + n] = sum;
    if (db1 != nullptr) put(db1 + h * N + n, sum, write);
  }
};

// dpe = W1 da_sum: a warp for each row.
template <class T>
__global__ void __launch_bounds__(kThreads)
    find_position_gradients(Shape<T> s, const float* da_sum, float* dpe, Write write) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (row >= static_cast<std::int64_t>(s.H) * s.l * s.D) return;
  const auto h = static_cast<int>(row / (static_cast<std::int64_t>(s.l) * s.D));
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  float sum = 0.0f;
  for (int x = lane; x < s.r; x += kWarp) sum += to_float(s.w1[row * s.r + x]) * da_sum[h * s.r + x];
  sum = tile::reduce_lanes<tile::Sum>(sum);
  if (lane == 0) put(dpe + row, sum, write);
}

// Where the tokens of a cell lie: `stride` tokens from one block's beginning to the next one's.
struct Cell {
  std::int32_t token, tokens;  // the cell's first, and how many there are
  std::int32_t block;          // row of the block that begins with it
  std::int32_t first, last;    // blocks of the document
};
static __global__ void __launch_bounds__(kThreads)
    find_cells(RowTables blocks, RowTables cells, int count, int stride, Cell* to) {
  const int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (i >= count) return;
  if (i >= cells.first_block[cells.N]) {
    to[i] = {};
    return;
  }
  const int n = last_at_most(cells.first_block, cells.N, i);
  const int cell = i - cells.first_block[n];
  const int begin = blocks.cu_seqlens[n] + cell * stride;
  to[i] = {begin, min(stride, blocks.cu_seqlens[n + 1] - begin), blocks.key_row[n] + cell, blocks.key_row[n],
           blocks.key_row[n + 1]};
}

// dx of the tokens at one place of their cells: they lie in the blocks that begin with their cell or before it.
//   dx = sum_back W1[place + back stride] da_(block - back) + dy_(block - back) / l
// z counts heads and places; without learned maps K = 0. Da: float, or T where da is dy.
template <class T, class Da>
struct TokenGradient {
  Shape<T> s;
  const Cell* cells;
  const Da* da;
  const T* dy;
  T* dx;
  Write write;
  int M, N, K;
  bool packs = s.packs;
  static constexpr bool kAlongA = true, kAlongB = false;

  struct Row {
    std::int32_t block, first, last;
    std::int32_t token;  // or -1
  };
  __device__ Row row(int z, int m) const {
    const Cell cell = cells[m];
    const int place = z % s.stride;
    return {cell.block, cell.first, cell.last, place < cell.tokens ? cell.token + place : -1};
  }
  __device__ const Da* a(int z, const Row& row, int, int k) const {
    const int block = row.block - k / s.r;
    if (block < row.first || block >= row.last) return nullptr;
    return da + (static_cast<std::int64_t>(block) * s.H + z / s.stride) * s.r + k % s.r;
  }
  __device__ float map(float x) const { return x; }
  __device__ const T* b(int z, int k, int n) const {
    const int offset = z % s.stride + k / s.r * s.stride;
    return s.w1 + ((static_cast<std::int64_t>(z / s.stride) * s.l + offset) * s.D + n) * s.r + k % s.r;
  }
  __device__ void store(int z, const Row& row, int, int n, float sum) const {
    if (row.token < 0) return;
    const int h = z / s.stride;
    float share = 0.0f;
    for (int back = s.l / s.stride - 1; back >= 0; --back) {
      const int block = row.block - back;
      if (block < row.first || block >= row.last) continue;
      share += to_float(dy[(static_cast<std::int64_t>(block) * s.H + h) * s.D + n]);
    }
    T& to = dx[(static_cast<std::int64_t>(row.token) * s.H + h) * s.D + n];
    sum += share / static_cast<float>(s.l);
    to = from_float<T>(write == Write::overwrite ? sum : to_float(to) + sum);
  }
};

}  // namespace weft::block_sparse::compression
