// CPU kernels of linear_cross_entropy.h, templated on float/double.
#pragma once

#include <algorithm>
#include <cmath>

#include "autograd/blas.h"
#include "autograd/ops/linear_cross_entropy/linear_cross_entropy.h"
#include "autograd/parallel_for.h"
#include "autograd/vec_math.h"

namespace weft {

// Tokens in a chunk: as many as fill kLossChunkBytes with logits, at least kMinLossChunk. Each chunk reads the weight
// twice and updates dweight once, so that short chunks are bound by memory whatever V is: at V = 32000, d = 256 in
// fp32, chunks of 32, 64, 128, 256 and 512 tokens reached 54, 70, 82, 86 and 84 % of the speed of the three products
// over whole matrices. 256 rows of logits take no more room than the weight of a model that is 256 wide.
inline constexpr std::int64_t kLossChunkBytes = std::int64_t{4} << 20;
inline constexpr std::int64_t kMinLossChunk = 256;

namespace loss {

// Scratch memory of one call; n is the number of tokens in a chunk.
template <class T>
struct Workspace {
  std::int64_t n;
  T* logits;           // [n, V]
  T* x;                // [n, d] rows gathered around ignored tokens
  T* dx;               // [n, d] to be scattered back
  T* token_loss;       // [T] of the tokens that count, in order
  T* log_z;            // [T]
  std::int32_t* rows;  // [T] which they are

  // With a null base, only `bytes` is meaningful.
  static Workspace carve(const LinearCrossEntropyForward& a, std::byte* base, std::size_t& bytes) {
    const std::int64_t row_bytes = a.V * static_cast<std::int64_t>(sizeof(T));
    Workspace w{};
    w.n = std::min(std::max(kMinLossChunk, kLossChunkBytes / row_bytes), a.T);
    bytes = 0;
    const auto take = [&]<class E>(E*& block, std::int64_t count) {
      if (base != nullptr) block = reinterpret_cast<E*>(base + bytes);
      bytes += (static_cast<std::size_t>(count) * sizeof(E) + 63) / 64 * 64;
    };
    take(w.logits, w.n * a.V);
    take(w.x, w.n * a.d);
    take(w.dx, a.dx == nullptr ? 0 : w.n * a.d);
    take(w.token_loss, a.T);
    take(w.log_z, a.T);
    take(w.rows, a.T);
    return w;
  }
};

// Lists the tokens that count; throws at a label outside the vocabulary.
inline std::int64_t list_rows(const LinearCrossEntropyForward& a, std::int32_t* rows) {
  std::int64_t count = 0;
  for (std::int64_t t = 0; t < a.T; ++t) {
    const std::int32_t label = a.labels[t];
    if (label == -1) continue;
    if (label < -1 || label >= a.V) {
      config_error("cross-entropy: the label of row {} is {}; expected 0 to {}, or -1 to ignore the row", t, label,
                   a.V - 1);
    }
    rows[count++] = static_cast<std::int32_t>(t);
  }
  return count;
}

// gemm in tiles that depend on the shape alone, each on one thread: a product that the BLAS shares out between threads
// rounds differently for another number of threads. There are always two tiles or more, so that the BLAS sees itself
// inside a threaded loop.
template <class T>
void product(Op op_a, Op op_b, std::int64_t m, std::int64_t n, std::int64_t k, const T* a, std::int64_t lda, const T* b,
             std::int64_t ldb, T beta, T* c, std::int64_t ldc) {
  const std::int64_t columns = std::min<std::int64_t>(256, m > 1 ? n : block_count(n, 2));
  std::int64_t rows = std::min<std::int64_t>(128, block_count(m, 2));
  if (block_count(m, rows) * block_count(n, columns) < 8) rows = std::min<std::int64_t>(64, rows);
  const std::int64_t across = block_count(n, columns);
  parallel_for(block_count(m, rows) * across, Schedule::dynamic, [&](std::int64_t tile) {
    const std::int64_t i = tile / across * rows;
    const std::int64_t j = tile % across * columns;
    gemm(op_a, op_b, std::min(rows, m - i), std::min(columns, n - j), k, T(1), a + (op_a == Op::none ? i * lda : i),
         lda, b + (op_b == Op::none ? j : j * ldb), ldb, beta, c + i * ldc + j, ldc);
  });
}

// log Z of one row of logits, which become exp(logit - max) if `keep`; `sum` receives their sum.
template <class T>
T log_sum_exp(T* logits, std::int64_t V, bool keep, T& sum) {
  T largest = logits[0];
#pragma omp simd reduction(max : largest)
  for (std::int64_t v = 0; v < V; ++v) largest = std::max(largest, logits[v]);
  // Short sums in T, their total in fp64: a large vocabulary loses no accuracy.
  constexpr std::int64_t kBlock = 512;
  double total = 0.0;
  for (std::int64_t begin = 0; begin < V; begin += kBlock) {
    const std::int64_t end = std::min(V, begin + kBlock);
    T part = 0;
    if (keep) {
#pragma omp simd reduction(+ : part)
      for (std::int64_t v = begin; v < end; ++v) {
        const T e = fast_exp(logits[v] - largest);
        logits[v] = e;
        part += e;
      }
    } else {
#pragma omp simd reduction(+ : part)
      for (std::int64_t v = begin; v < end; ++v) part += fast_exp(logits[v] - largest);
    }
    total += static_cast<double>(part);
  }
  sum = static_cast<T>(total);
  return static_cast<T>(std::log(total)) + largest;
}

// Losses of one token; its logits become their gradient if `gradient`.
template <class T>
void token(const LinearCrossEntropyForward& a, std::int64_t row, T* logits, bool gradient, T& token_loss, T& log_z) {
  const std::int32_t label = a.labels[row];
  const T label_logit = logits[label];
  T sum;
  log_z = log_sum_exp(logits, a.V, gradient, sum);
  token_loss = log_z - label_logit;
  if (!gradient) return;
  const T scale = static_cast<T>((a.weights != nullptr ? static_cast<double>(a.weights[row]) : 1.0) / a.denominator);
  const T k = scale * (T(1) + T(2) * static_cast<T>(a.z_loss) * log_z) / sum;
#pragma omp simd
  for (std::int64_t v = 0; v < a.V; ++v) logits[v] *= k;
  logits[label] -= scale;
}

}  // namespace loss

template <class T>
void linear_cross_entropy_forward_cpu(const LinearCrossEntropyForward& a, std::byte* workspace) {
  const auto* x = static_cast<const T*>(a.x);
  const auto* weight = static_cast<const T*>(a.weight);
  auto* dx = static_cast<T*>(a.dx);
  auto* dweight = static_cast<T*>(a.dweight);
  const std::int64_t d = a.d;
  const std::int64_t V = a.V;
  const bool gradient = dx != nullptr || dweight != nullptr;
  std::size_t bytes = 0;
  const auto w = loss::Workspace<T>::carve(a, workspace, bytes);

  const std::int64_t count = loss::list_rows(a, w.rows);
  if (dx != nullptr && count < a.T) {
    for (std::int64_t t = 0; t < a.T; ++t) {
      if (a.labels[t] == -1) std::fill_n(dx + t * d, d, T(0));
    }
  }
  if (dweight != nullptr && count == 0) std::fill_n(dweight, V * d, T(0));

  for (std::int64_t begin = 0; begin < count; begin += w.n) {
    const std::int64_t n = std::min(w.n, count - begin);
    const std::int32_t* rows = w.rows + begin;
    // Without ignored tokens in between, the chunk is read from x and written to dx in place.
    const bool contiguous = rows[n - 1] - rows[0] == n - 1;
    const T* x_chunk = contiguous ? x + rows[0] * d : w.x;
    if (!contiguous) {
      parallel_blocks(n, rows_per_block(d), [&](std::int64_t, std::int64_t first, std::int64_t last) {
        for (std::int64_t i = first; i < last; ++i) std::copy_n(x + rows[i] * d, d, w.x + i * d);
      });
    }
    loss::product(Op::none, Op::transpose, n, V, d, x_chunk, d, weight, d, T(0), w.logits, V);
    parallel_blocks(n, rows_per_block(V), [&](std::int64_t, std::int64_t first, std::int64_t last) {
      for (std::int64_t i = first; i < last; ++i) {
        loss::token(a, rows[i], w.logits + i * V, gradient, w.token_loss[begin + i], w.log_z[begin + i]);
      }
    });
    if (dx != nullptr) {
      T* dx_chunk = contiguous ? dx + rows[0] * d : w.dx;
      loss::product(Op::none, Op::none, n, d, V, w.logits, V, weight, d, T(0), dx_chunk, d);
      if (!contiguous) {
        parallel_blocks(n, rows_per_block(d), [&](std::int64_t, std::int64_t first, std::int64_t last) {
          for (std::int64_t i = first; i < last; ++i) std::copy_n(w.dx + i * d, d, dx + rows[i] * d);
        });
      }
    }
    if (dweight != nullptr) {
      loss::product(Op::transpose, Op::none, V, d, n, w.logits, V, x_chunk, d, begin == 0 ? T(0) : T(1), dweight, d);
    }
  }

  auto* token_losses = static_cast<T*>(a.token_losses);
  if (token_losses != nullptr) std::fill_n(token_losses, a.T, T(0));
  LossSums sums{.token_count = count};
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t t = w.rows[i];
    const double token_weight = a.weights != nullptr ? static_cast<double>(a.weights[t]) : 1.0;
    const auto log_z = static_cast<double>(w.log_z[i]);
    sums.loss += token_weight * static_cast<double>(w.token_loss[i]);
    sums.log_z_squared += token_weight * log_z * log_z;
    sums.weight += token_weight;
    if (token_losses != nullptr) token_losses[t] = w.token_loss[i];
  }
  a.sums[0] = sums.loss;
  a.sums[1] = sums.log_z_squared;
  a.sums[2] = sums.weight;
  a.sums[3] = static_cast<double>(sums.token_count);
  *static_cast<T*>(a.loss) = static_cast<T>((sums.loss + a.z_loss * sums.log_z_squared) / a.denominator);
}

template <class T>
void linear_cross_entropy_backward_cpu(const LinearCrossEntropyBackward& a) {
  const auto* gradient = static_cast<const T*>(a.gradient);
  auto* target = static_cast<T*>(a.target);
  const T seed = *static_cast<const T*>(a.seed);
  parallel_blocks(a.n, 32768, [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    if (a.write == Write::overwrite) {
      for (std::int64_t i = begin; i < end; ++i) target[i] = seed * gradient[i];
    } else {
      for (std::int64_t i = begin; i < end; ++i) target[i] += seed * gradient[i];
    }
  });
}

}  // namespace weft
