// Sums over rows in an order that no number of threads changes: a loop over row_blocks() sums each block of rows into
// its own line of a workspace, and add_lines() adds the lines in order.
//
// R rows, W width of a line.
#pragma once

#include <algorithm>
#include <cstdint>

#include "autograd/dispatch.h"
#include "autograd/parallel_for.h"

namespace weft {

struct RowBlocks {
  std::int64_t rows;   // of one block
  std::int64_t count;  // of blocks = lines of the workspace
};

// Blocks worth a thread's while, but few enough that the lines cost little next to the rows.
inline RowBlocks row_blocks(std::int64_t R, std::int64_t W) {
  constexpr std::int64_t kMaxBlocks = 64;
  const std::int64_t rows = std::max(rows_per_block(W), block_count(R, kMaxBlocks));
  return {rows, block_count(R, rows)};
}

// target[W] = (or +=) sum of lines[count, W]. No lines: zero.
template <class T>
void add_lines(const T* lines, std::int64_t count, std::int64_t W, T* target, Write write) {
  constexpr std::int64_t kStrip = 256;
  parallel_blocks(W, kStrip, [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    alignas(64) T total[kStrip] = {};
    const std::int64_t n = end - begin;
    for (std::int64_t line = 0; line < count; ++line) {
      const T* from = lines + line * W + begin;
#pragma omp simd
      for (std::int64_t i = 0; i < n; ++i) total[i] += from[i];
    }
    for (std::int64_t i = 0; i < n; ++i) store(target[begin + i], total[i], write);
  });
}

// target[W] = (or +=) sum over rows of x[R, W]. `lines` has row_blocks(R, W).count * W elements.
template <class T>
void sum_rows(const T* x, std::int64_t R, std::int64_t W, T* lines, T* target, Write write) {
  const RowBlocks blocks = row_blocks(R, W);
  parallel_blocks(R, blocks.rows, [&](std::int64_t b, std::int64_t begin, std::int64_t end) {
    T* line = lines + b * W;
    std::fill(line, line + W, T(0));
    for (std::int64_t i = begin; i < end; ++i) {
      const T* row = x + i * W;
#pragma omp simd
      for (std::int64_t c = 0; c < W; ++c) line[c] += row[c];
    }
  });
  add_lines(lines, blocks.count, W, target, write);
}

}  // namespace weft
