// CPU kernels of delta_rule.h, templated on float/double: how the chunks of a row are walked.
//
// Fused: one task for each document and key head walks its chunks, with the states and the operands of one chunk in
// cache. Two-level: for a window of chunks, the operands that need no state (parallel over chunks and heads), the walk
// over the states (in order, parallel over heads and blocks of value columns), and, backwards, the gradients of
// queries, keys and decays (parallel over chunks and key heads). Both do the same arithmetic in the same order, so
// results depend neither on the schedule nor on the number of threads.
#pragma once

#include "autograd/parallel_for.h"
#include "modules/families/delta_rule/delta_chunk_cpu.h"
#include "modules/families/document_count.h"

namespace weft {

inline DeltaSchedule delta_schedule(const DeltaRuleProblem& p) {
  if (p.schedule != DeltaSchedule::automatic) return p.schedule;
  const std::int64_t threads = task_threads();
  const std::int64_t documents = documents_with_tokens(p.cu_seqlens, p.N);
  const bool even = documents * p.H_K >= 4 * threads || (documents == 1 && p.H_K % threads == 0);
  return even ? DeltaSchedule::fused : DeltaSchedule::two_level;
}

// Chunks of the table that the two-level schedule treats together.
inline std::int64_t delta_window(const DeltaRuleProblem& p) {
  const std::int64_t items = DeltaRuleCpuPolicy::kWindowItemsPerThread * task_threads();
  return std::clamp<std::int64_t>(block_count(items, p.H), 1, std::max<std::int64_t>(1, p.chunk_count));
}

template <class T, DeltaDecay kDecay>
class DeltaRuleWalk {
 public:
  // With a null workspace the object only knows its size.
  DeltaRuleWalk(const DeltaRuleProblem& p, bool backward, void* workspace)
      : p_(p),
        size_(p.d_k * p.d_v),
        group_(p.H / p.H_K),
        fused_(delta_schedule(p) == DeltaSchedule::fused),
        window_(fused_ ? 0 : delta_window(p)),
        operands_stride_(backward ? elements_of<GradientOperands>() : elements_of<Operands>()) {
    const std::int64_t threads = task_threads();
    Carver<T> one_thread(nullptr);
    one_thread.take(Kernel::scratch_elements(p));
    scratch_stride_ = one_thread.used();
    Carver<T> carver(static_cast<T*>(workspace));
    scratch_ = carver.take(threads * scratch_stride_);
    operands_ = carver.take((fused_ ? threads : window_ * p.H) * operands_stride_);
    states_ = carver.take((fused_ ? threads * group_ : p.H) * size_);
    if (backward) entries_ = carver.take(p.chunk_count * p.H * size_);
    bytes_ = static_cast<std::size_t>(carver.used()) * sizeof(T);
  }
  std::size_t bytes() const { return bytes_; }

  void forward(const DeltaRuleForward& a) {
    pass_empty_documents(a.s0, a.st, Write::overwrite);
    walk<Operands>(
        Direction::forwards, DeltaOperandSet::all,
        [&](const Kernel& kernel, const Operands& in, std::int64_t c, std::int64_t h, DeltaColumns columns, T* S) {
          const DeltaTile<T> tile(p_, p_.chunks[c], h);
          if (is_first(c)) load(p_.s0, c, h, columns, S);
          kernel.updates(tile, in, columns, S);
          kernel.outputs(tile, in, columns, S, static_cast<T*>(a.o) + tile.value_offset);
          kernel.advance(tile, in, columns, S);
          if (is_last(c)) save(S, c, h, columns, a.st, Write::overwrite);
        },
        nullptr);
  }

  void backward(const DeltaRuleBackward& a) {
    pass_empty_documents(a.dst, a.ds0, a.write_ds0);
    walk<Operands>(
        Direction::forwards, DeltaOperandSet::keys,
        [&](const Kernel& kernel, const Operands& in, std::int64_t c, std::int64_t h, DeltaColumns columns, T* S) {
          const DeltaTile<T> tile(p_, p_.chunks[c], h);
          if (is_first(c)) load(p_.s0, c, h, columns, S);
          copy_columns(S, columns, entry(c, h));
          if (is_last(c)) return;
          kernel.updates(tile, in, columns, S);
          kernel.advance(tile, in, columns, S);
        },
        nullptr);
    walk<GradientOperands>(
        Direction::backwards, DeltaOperandSet::all,
        [&](const Kernel& kernel, const GradientOperands& in, std::int64_t c, std::int64_t h, DeltaColumns columns,
            T* dS) {
          const DeltaTile<T> tile(p_, p_.chunks[c], h);
          if (is_last(c)) load(a.dst, c, h, columns, dS);
          kernel.updates(tile, in, columns, entry(c, h));
          kernel.retreat(tile, in, columns, dS, DeltaGradients<T>(a, tile));
          if (is_first(c)) save(dS, c, h, columns, a.ds0, a.write_ds0);
        },
        [&](Kernel& kernel, const GradientOperands& in, std::int64_t c, std::int64_t h) {
          const DeltaTile<T> tile(p_, p_.chunks[c], h);
          kernel.gradients(tile, in, entry(c, h), DeltaGradients<T>(a, tile));
        });
  }

 private:
  using Kernel = DeltaChunk<T, kDecay>;
  using Operands = DeltaOperands<T>;
  using GradientOperands = DeltaGradientOperands<T>;
  enum class Direction : std::uint8_t { forwards, backwards };

  template <class AnyOperands>
  std::int64_t elements_of() const {
    Carver<T> counting(nullptr);
    AnyOperands(counting, p_);
    return counting.used();
  }
  template <class AnyOperands>
  AnyOperands operands(std::int64_t slot) const {
    Carver<T> carver(operands_ + slot * operands_stride_);
    return AnyOperands(carver, p_);
  }
  Kernel kernel() const { return Kernel(p_, scratch_ + omp_get_thread_num() * scratch_stride_); }
  T* entry(std::int64_t c, std::int64_t h) const { return entries_ + (c * p_.H + h) * size_; }
  bool is_first(std::int64_t c) const { return p_.chunks[c].index == 0; }
  bool is_last(std::int64_t c) const { return c + 1 == p_.document_offset[p_.chunks[c].document + 1]; }

  // The walk over all chunks. column_step(kernel, operands, c, h, columns, state) is called for the chunks of a head in
  // order of the direction; `state` stays with the head and starts undefined at each document. chunk_step(kernel,
  // operands, c, h), unless null, follows when all columns of a chunk are done, the heads of a key head in their order.
  template <class AnyOperands, class ColumnStep, class ChunkStep>
  void walk(Direction direction, DeltaOperandSet set, const ColumnStep& column_step, const ChunkStep& chunk_step) {
    if (fused_) return walk_fused<AnyOperands>(direction, set, column_step, chunk_step);
    const std::int64_t windows = block_count(p_.chunk_count, window_);
    for (std::int64_t i = 0; i < windows; ++i) {
      const std::int64_t begin = (direction == Direction::forwards ? i : windows - 1 - i) * window_;
      const std::int64_t end = std::min(p_.chunk_count, begin + window_);
      const auto in = [&](std::int64_t c, std::int64_t h) { return operands<AnyOperands>((c - begin) * p_.H + h); };
      for_each_task((end - begin) * p_.H, [&](std::int64_t item) {
        const std::int64_t c = begin + item / p_.H, h = item % p_.H;
        Kernel own = kernel();
        prepare(own, c, h, set, in(c, h));
      });
      const std::int64_t column_blocks = block_count(p_.d_v, kColumns);
      for_each_task(p_.H * column_blocks, [&](std::int64_t item) {
        const std::int64_t h = item / column_blocks;
        for_each_chunk(direction, begin, end, [&](std::int64_t c) {
          column_step(kernel(), in(c, h), c, h, columns(item % column_blocks), states_ + h * size_);
        });
      });
      if constexpr (!std::is_null_pointer_v<ChunkStep>) {
        for_each_task((end - begin) * p_.H_K, [&](std::int64_t item) {
          const std::int64_t c = begin + item / p_.H_K, first = item % p_.H_K * group_;
          Kernel own = kernel();
          for (std::int64_t h = first; h < first + group_; ++h) chunk_step(own, in(c, h), c, h);
        });
      }
    }
  }

  template <class AnyOperands, class ColumnStep, class ChunkStep>
  void walk_fused(Direction direction, DeltaOperandSet set, const ColumnStep& column_step,
                  const ChunkStep& chunk_step) {
    for_each_task(p_.N * p_.H_K, [&](std::int64_t task) {
      const std::int64_t n = task / p_.H_K, first = task % p_.H_K * group_;
      Kernel own = kernel();
      const auto in = operands<AnyOperands>(omp_get_thread_num());
      T* states = states_ + omp_get_thread_num() * group_ * size_;
      for_each_chunk(direction, p_.document_offset[n], p_.document_offset[n + 1], [&](std::int64_t c) {
        for (std::int64_t h = first; h < first + group_; ++h) {
          prepare(own, c, h, set, in);
          for (std::int64_t b = 0; b < block_count(p_.d_v, kColumns); ++b) {
            column_step(own, in, c, h, columns(b), states + (h - first) * size_);
          }
          if constexpr (!std::is_null_pointer_v<ChunkStep>) chunk_step(own, in, c, h);
        }
      });
    });
  }

  // Keys alone lead to the next entry state; there is none after a document's last chunk.
  void prepare(Kernel& own, std::int64_t c, std::int64_t h, DeltaOperandSet set, const Operands& to) const {
    if (set == DeltaOperandSet::keys && is_last(c)) return;
    own.operands(DeltaTile<T>(p_, p_.chunks[c], h), set, to);
  }

  template <class F>
  static void for_each_chunk(Direction direction, std::int64_t begin, std::int64_t end, F&& f) {
    for (std::int64_t i = 0; i < end - begin; ++i) f(direction == Direction::forwards ? begin + i : end - 1 - i);
  }

  static constexpr std::int64_t kColumns = DeltaRuleCpuPolicy::kColumns;
  DeltaColumns columns(std::int64_t block) const {
    return {block * kColumns, std::min(kColumns, p_.d_v - block * kColumns)};
  }

  void copy_columns(const T* from, DeltaColumns columns, T* to) const {
    for (std::int64_t x = 0; x < p_.d_k; ++x) {
      const std::int64_t at = x * p_.d_v + columns.first;
      std::copy(from + at, from + at + columns.width, to + at);
    }
  }
  // Columns of the state of head h, for the document of chunk c; null stands for zero.
  void load(const void* from, std::int64_t c, std::int64_t h, DeltaColumns columns, T* to) const {
    if (from != nullptr) {
      const std::int64_t n = p_.chunks[c].document;
      return copy_columns(static_cast<const T*>(from) + (n * p_.H + h) * size_, columns, to);
    }
    for (std::int64_t x = 0; x < p_.d_k; ++x) {
      T* row = to + x * p_.d_v + columns.first;
      std::fill(row, row + columns.width, T(0));
    }
  }
  void save(const T* from, std::int64_t c, std::int64_t h, DeltaColumns columns, void* to, Write write) const {
    if (to == nullptr) return;
    T* target = static_cast<T*>(to) + (p_.chunks[c].document * p_.H + h) * size_;
    for (std::int64_t x = 0; x < p_.d_k; ++x) {
      const std::int64_t at = x * p_.d_v + columns.first;
      for (std::int64_t y = at; y < at + columns.width; ++y) store(target[y], from[y], write);
    }
  }
  // The states of a document without tokens pass through.
  void pass_empty_documents(const void* from, void* to, Write write) const {
    if (to == nullptr) return;
    const std::int64_t states = p_.H * size_;
    for (std::int64_t n = 0; n < p_.N; ++n) {
      if (p_.cu_seqlens[n] != p_.cu_seqlens[n + 1]) continue;
      for (std::int64_t e = n * states; e < (n + 1) * states; ++e) {
        store(static_cast<T*>(to)[e], from == nullptr ? T(0) : static_cast<const T*>(from)[e], write);
      }
    }
  }

  const DeltaRuleProblem& p_;
  std::int64_t size_;   // elements of a state
  std::int64_t group_;  // value heads of a key head
  bool fused_;
  std::int64_t window_;  // chunks, two-level
  std::int64_t operands_stride_, scratch_stride_ = 0;
  std::size_t bytes_ = 0;
  T *scratch_ = nullptr, *operands_ = nullptr;
  T* states_ = nullptr;   // running states: [threads, group] or [H]
  T* entries_ = nullptr;  // [chunk_count, H] states at the entries of chunks
};

// --- decode ----------------------------------------------------------------------------------------------------------

// u: workspace [N, H, d_v].
template <class T>
void delta_rule_decode_cpu(const DeltaRuleDecode& a, T* workspace) {
  const auto* g = static_cast<const T*>(a.g);
  parallel_blocks(a.N * a.H, rows_per_block(a.d_k * a.d_v), [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t key = (i / a.H * a.H_K + i % a.H / (a.H / a.H_K)) * a.d_k;
      const T* q = static_cast<const T*>(a.q) + key;
      const T* k = static_cast<const T*>(a.k) + key;
      const T* v = static_cast<const T*>(a.v) + i * a.d_v;
      const T beta = static_cast<const T*>(a.beta)[i];
      T* S = static_cast<T*>(a.state) + i * a.d_k * a.d_v;
      T* o = static_cast<T*>(a.o) + i * a.d_v;
      T* u = workspace + i * a.d_v;
      // One pass decays the state and reads it with the key and the query, one writes; q S_t = q S~_t + (q k^T) u_t.
      std::fill(o, o + a.d_v, T(0));
      std::fill(u, u + a.d_v, T(0));
      for (std::int64_t x = 0; x < a.d_k; ++x) {
        const T e =
            a.decay == DeltaDecay::none ? T(1) : std::exp(a.decay == DeltaDecay::scalar ? g[i] : g[i * a.d_k + x]);
        T* row = S + x * a.d_v;
        for (std::int64_t y = 0; y < a.d_v; ++y) {
          row[y] *= e;
          u[y] += k[x] * row[y];
          o[y] += q[x] * row[y];
        }
      }
      const T qk = dot(q, k, a.d_k);
      for (std::int64_t y = 0; y < a.d_v; ++y) {
        u[y] = beta * (v[y] - u[y]);
        o[y] = static_cast<T>(a.scale) * (o[y] + qk * u[y]);
      }
      for (std::int64_t x = 0; x < a.d_k; ++x) {
        T* row = S + x * a.d_v;
        for (std::int64_t y = 0; y < a.d_v; ++y) row[y] += k[x] * u[y];
      }
    }
  });
}

}  // namespace weft
