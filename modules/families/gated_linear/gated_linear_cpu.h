// CPU kernels of gated_linear.h, templated on float/double: how the chunks of a row are walked.
//
// Fused: one task for each document and group of heads walks its chunks and keeps the states in cache; a group takes
// the heads of one chunk together, because their rows lie side by side. Two-level: for a window of chunks, what each
// adds to the state (parallel), the states between them (in order, parallel over rows of the state), their outputs or
// gradients (parallel); this keeps all threads busy with one head. Both do the same arithmetic in the
// same order, so results depend neither on the schedule nor on the number of threads.
//
// d_k x d_v elements of a state; S and dS as in chunk_scalar_cpu.h.
#pragma once

#include "autograd/ops/feature_map/feature_map_cpu.h"
#include "autograd/parallel_for.h"
#include "modules/families/gated_linear/chunk_scalar_cpu.h"
#include "modules/families/gated_linear/chunk_vector_cpu.h"
#include "modules/families/gated_linear/gated_linear_schedule.h"

namespace weft {

template <class T, DecayKind kKind>
struct ChunkKernelOf {
  using Type = ScalarDecayChunk<T, kKind>;
};
template <class T>
struct ChunkKernelOf<T, DecayKind::vector> {
  using Type = VectorDecayChunk<T>;
};

// --- pieces shared by both directions --------------------------------------------------------------------------------

// S <- diag(e^log_decay) S + U and U <- what S was, for rows [begin, end): rounded in one way, wherever it is called.
template <class T, class LogDecay>
void advance_state(T* S, T* U, LogDecay&& log_decay, std::int64_t begin, std::int64_t end, std::int64_t d_v) {
  for (std::int64_t x = begin; x < end; ++x) {
    const StateDecay<T> decay(log_decay(x));
    for (std::int64_t y = x * d_v; y < (x + 1) * d_v; ++y) {
      const T before = S[y];
      S[y] = decay.advance(before, U[y]);
      U[y] = before;
    }
  }
}

template <class T, DecayKind kKind>
class GatedLinearWalk {
 public:
  // With a null workspace the object only knows its size.
  GatedLinearWalk(const GatedLinearProblem& p, bool backward, void* workspace)
      : p_(p), size_(p.d_k * p.d_v), fused_(gated_linear_schedule(p) == ChunkSchedule::fused) {
    Carver<T> carver(static_cast<T*>(workspace));
    tables_ = carver.take(constant_decay_elements(p));
    Carver<T> one_thread(nullptr);
    one_thread.take(Kernel::scratch_elements(p));  // first, so that it is aligned
    thread_states_ = one_thread.used();
    if (fused_) group_ = gated_linear_group(p);
    one_thread.take((group_ + 1) * size_);
    thread_staged_ = one_thread.used();
    if (staged()) one_thread.take(kStagedTiles * p.C * p.d_k);
    scratch_stride_ = one_thread.used();
    scratch_ = carver.take(task_threads() * scratch_stride_);
    if (backward) entries_ = carver.take(p.chunk_count * p.H * size_);
    if (!fused_) {
      window_ = gated_linear_window(p);
      states_ = carver.take(window_ * p.H * size_);
      log_decays_ = carver.take(window_ * p.H * p.d_k);
      carried_ = carver.take(p.H * size_);
    }
    bytes_ = static_cast<std::size_t>(carver.used()) * sizeof(T);
    if (workspace != nullptr) constant_decay_tables(p, tables_);
  }
  std::size_t bytes() const { return bytes_; }

  void forward(const GatedLinearForward& a) {
    pass_empty_documents(a.s0, a.st, Write::overwrite);
    if (fused_) return forward_fused(a);
    for (std::int64_t begin = 0; begin < p_.chunk_count; begin += window_) {
      const std::int64_t end = std::min(p_.chunk_count, begin + window_);
      entry_states(begin, end, states_, a.st);
      for_each_chunk(begin, end, [&](Kernel& kernel, const ChunkTile<T>& tile, std::int64_t c, std::int64_t item) {
        kernel.outputs(tile, starts_at_zero(c) ? nullptr : states_ + item * size_,
                       static_cast<T*>(a.o) + tile.value_offset);
      });
    }
  }

  void backward(const GatedLinearBackward& a) {
    pass_empty_documents(a.dst, a.ds0, a.write_ds0);
    if (fused_) return backward_fused(a);
    for (std::int64_t begin = 0; begin < p_.chunk_count; begin += window_) {
      entry_states(begin, std::min(p_.chunk_count, begin + window_), entries_ + begin * p_.H * size_, nullptr);
    }
    for (std::int64_t end = p_.chunk_count; end > 0; end -= std::min(end, window_)) {
      const std::int64_t begin = std::max<std::int64_t>(0, end - window_);
      exit_gradients(a, begin, end);
      for_each_chunk(begin, end, [&](Kernel& kernel, const ChunkTile<T>& tile, std::int64_t c, std::int64_t item) {
        input_gradients(kernel, tile, starts_at_zero(c) ? nullptr : entries_ + (begin * p_.H + item) * size_,
                        is_last(c) && a.dst == nullptr ? nullptr : states_ + item * size_, ChunkGradients<T>(a, tile));
      });
    }
  }

 private:
  using Kernel = typename ChunkKernelOf<T, kKind>::Type;

  bool is_last(std::int64_t c) const { return c + 1 == p_.document_offset[p_.chunks[c].document + 1]; }
  bool starts_at_zero(std::int64_t c) const { return p_.s0 == nullptr && p_.chunks[c].index == 0; }
  T* thread_scratch() const { return scratch_ + omp_get_thread_num() * scratch_stride_; }

  // With a map, or where heads share keys, queries and keys are staged in four tiles of the thread: the features of q
  // and k, then their gradients. Heads of a set follow each other on one thread, so the first fills the tiles for all,
  // and what they give to the gradients is added up there.
  static constexpr std::int64_t kStagedTiles = 4;
  bool staged() const { return p_.map != FeatureMap::identity || p_.heads_per_key() > 1; }
  T* staged_tile(std::int64_t i) const { return thread_scratch() + thread_staged_ + i * p_.C * p_.d_k; }
  bool first_of_set(std::int64_t h) const { return h % p_.heads_per_key() == 0; }
  bool last_of_set(std::int64_t h) const { return (h + 1) % p_.heads_per_key() == 0; }

  // The chunk of one head as the kernels see it.
  ChunkTile<T> tile_of(std::int64_t c, std::int64_t h) const {
    ChunkTile<T> tile(p_, p_.chunks[c], h);
    if (!staged()) return tile;
    const auto stage = [&](const T* x, T* features) {
      if (first_of_set(h)) feature_rows(p_.map, tile.n, p_.stored_key_width(), x, tile.ld_k, features);
      return features;
    };
    tile.q = stage(tile.q, staged_tile(0));
    tile.k = stage(tile.k, staged_tile(1));
    tile.ld_k = p_.d_k;
    return tile;
  }

  // Gradients of what is stored: those of features go back through the map.
  void input_gradients(Kernel& kernel, const ChunkTile<T>& tile, const T* S, const T* dS, const ChunkGradients<T>& to) {
    if (!staged()) return kernel.gradients(tile, S, dS, to);
    ChunkGradients<T> inner = to;
    inner.dq = to.dq != nullptr ? staged_tile(2) : nullptr;
    inner.dk = to.dk != nullptr ? staged_tile(3) : nullptr;
    inner.write_dq = inner.write_dk = first_of_set(tile.h) ? Write::overwrite : Write::accumulate;
    kernel.gradients(tile, S, dS, inner);
    if (!last_of_set(tile.h)) return;
    const auto pull_back = [&](const void* x, const T* features, const T* dfeatures, T* dx, Write write) {
      if (dx == nullptr) return;
      const std::int64_t width = p_.stored_key_width();
      feature_rows_backward(p_.map, tile.n, width, static_cast<const T*>(x) + tile.key_offset, p_.key_heads() * width,
                            features, dfeatures, dx, write);
    };
    pull_back(p_.q, tile.q, inner.dq, to.dq, to.write_dq);
    pull_back(p_.k, tile.k, inner.dk, to.dk, to.write_dk);
  }

  // State of head h of document n as rows [begin, end) of elements; null stands for zero.
  void load(const void* from, std::int64_t n, std::int64_t h, std::int64_t begin, std::int64_t end, T* to) const {
    if (from == nullptr) {
      std::fill(to + begin, to + end, T(0));
    } else {
      const T* source = static_cast<const T*>(from) + (n * p_.H + h) * size_;
      std::copy(source + begin, source + end, to + begin);
    }
  }
  void save(const T* from, std::int64_t n, std::int64_t h, std::int64_t begin, std::int64_t end, void* to,
            Write write) const {
    if (to == nullptr) return;
    T* target = static_cast<T*>(to) + (n * p_.H + h) * size_;
    for (std::int64_t e = begin; e < end; ++e) store(target[e], from[e], write);
  }
  // The state of a document without tokens passes through.
  void pass_empty_documents(const void* from, void* to, Write write) {
    for (std::int64_t n = 0; n < p_.N; ++n) {
      if (p_.cu_seqlens[n] != p_.cu_seqlens[n + 1]) continue;
      for (std::int64_t h = 0; h < p_.H; ++h) {
        load(from, n, h, 0, size_, scratch_ + thread_states_);
        save(scratch_ + thread_states_, n, h, 0, size_, to, write);
      }
    }
  }

  // f(kernel, tile, chunk, item) for every chunk of the window and head, sets of heads in parallel; item counts from 0.
  template <class F>
  void for_each_chunk(std::int64_t begin, std::int64_t end, F&& f) {
    const std::int64_t heads = p_.heads_per_key();
    for_each_task((end - begin) * p_.key_heads(), [&](std::int64_t task) {
      const std::int64_t c = begin + task / p_.key_heads();
      Kernel kernel(p_, thread_scratch(), tables_);
      for (std::int64_t item = task * heads; item < (task + 1) * heads; ++item) {
        f(kernel, tile_of(c, item % p_.H), c, item);
      }
    });
  }

  // Scans the window's states in the order of `chunk_at(i)`, i = 0..count: `states` holds what each chunk adds and
  // becomes the state before it in that order. `enter` and `leave` see the carried state around each chunk.
  template <class Enter, class Leave>
  void scan(std::int64_t begin, std::int64_t end, bool reverse, T* states, Enter&& enter, Leave&& leave) {
    constexpr std::int64_t kRows = 16;
    const std::int64_t blocks = block_count(p_.d_k, kRows);
    parallel_for(p_.H * blocks, Schedule::fixed, [&](std::int64_t item) {
      const std::int64_t h = item / blocks;
      const std::int64_t first_row = item % blocks * kRows;
      const std::int64_t last_row = std::min(p_.d_k, first_row + kRows);
      T* S = carried_ + h * size_;
      for (std::int64_t i = 0; i < end - begin; ++i) {
        const std::int64_t c = reverse ? end - 1 - i : begin + i;
        const std::int64_t at = (c - begin) * p_.H + h;
        enter(c, h, first_row * p_.d_v, last_row * p_.d_v, S);
        advance_state(
            S, states + at * size_, [&](std::int64_t x) { return log_decays_[at * p_.d_k + x]; }, first_row, last_row,
            p_.d_v);
        leave(c, h, first_row * p_.d_v, last_row * p_.d_v, S);
      }
    });
  }

  void keep_log_decays(const Kernel& kernel, std::int64_t item) {
    for (std::int64_t x = 0; x < p_.d_k; ++x) log_decays_[item * p_.d_k + x] = kernel.log_decay(x);
  }

  // states[(c - begin), h] <- state at the entry of chunk c; final states go to st unless it is null.
  void entry_states(std::int64_t begin, std::int64_t end, T* states, void* st) {
    for_each_chunk(begin, end, [&](Kernel& kernel, const ChunkTile<T>& tile, std::int64_t, std::int64_t item) {
      kernel.prepare(tile);
      kernel.contribution(tile, states + item * size_);
      keep_log_decays(kernel, item);
    });
    scan(
        begin, end, false, states,
        [&](std::int64_t c, std::int64_t h, std::int64_t first, std::int64_t last, T* S) {
          if (p_.chunks[c].index == 0) load(p_.s0, p_.chunks[c].document, h, first, last, S);
        },
        [&](std::int64_t c, std::int64_t h, std::int64_t first, std::int64_t last, T* S) {
          if (is_last(c)) save(S, p_.chunks[c].document, h, first, last, st, Write::overwrite);
        });
  }

  // states_[(c - begin), h] <- gradient of the state at the exit of chunk c.
  void exit_gradients(const GatedLinearBackward& a, std::int64_t begin, std::int64_t end) {
    for_each_chunk(begin, end, [&](Kernel& kernel, const ChunkTile<T>& tile, std::int64_t, std::int64_t item) {
      kernel.prepare(tile);
      kernel.gradient_contribution(tile, ChunkGradients<T>(a, tile), states_ + item * size_);
      keep_log_decays(kernel, item);
    });
    scan(
        begin, end, true, states_,
        [&](std::int64_t c, std::int64_t h, std::int64_t first, std::int64_t last, T* dS) {
          if (is_last(c)) load(a.dst, p_.chunks[c].document, h, first, last, dS);
        },
        [&](std::int64_t c, std::int64_t h, std::int64_t first, std::int64_t last, T* dS) {
          if (p_.chunks[c].index == 0) save(dS, p_.chunks[c].document, h, first, last, a.ds0, a.write_ds0);
        });
  }

  // What a task of the fused schedule works on: heads [begin, end) of one document, their states, and one more.
  struct Group {
    std::int64_t n, begin, end;
    T *states, *spare;
  };
  // f(kernel, group) for every document with tokens and group of heads, in parallel.
  template <class F>
  void for_each_group(F&& f) {
    const std::int64_t groups = block_count(p_.H, group_);
    for_each_task(p_.N * groups, [&](std::int64_t task) {
      const std::int64_t n = task / groups;
      if (p_.cu_seqlens[n] == p_.cu_seqlens[n + 1]) return;
      const std::int64_t begin = task % groups * group_;
      Kernel kernel(p_, thread_scratch(), tables_);
      T* states = thread_scratch() + thread_states_;
      f(kernel, Group{n, begin, std::min(p_.H, begin + group_), states, states + group_ * size_});
    });
  }

  void forward_fused(const GatedLinearForward& a) {
    for_each_group([&](Kernel& kernel, const Group& group) {
      const auto S = [&](std::int64_t h) { return group.states + (h - group.begin) * size_; };
      const auto log_decay = [&](std::int64_t x) { return kernel.log_decay(x); };
      for (std::int64_t h = group.begin; h < group.end; ++h) load(p_.s0, group.n, h, 0, size_, S(h));
      for (std::int64_t c = p_.document_offset[group.n]; c < p_.document_offset[group.n + 1]; ++c) {
        for (std::int64_t h = group.begin; h < group.end; ++h) {
          const ChunkTile<T> tile = tile_of(c, h);
          kernel.outputs(tile, starts_at_zero(c) ? nullptr : S(h), static_cast<T*>(a.o) + tile.value_offset);
          kernel.contribution(tile, group.spare);
          advance_state(S(h), group.spare, log_decay, 0, p_.d_k, p_.d_v);
        }
      }
      for (std::int64_t h = group.begin; h < group.end; ++h) {
        save(S(h), group.n, h, 0, size_, a.st, Write::overwrite);
      }
    });
  }

  void backward_fused(const GatedLinearBackward& a) {
    for_each_group([&](Kernel& kernel, const Group& group) {
      const auto S = [&](std::int64_t h) { return group.states + (h - group.begin) * size_; };  // then dS
      const auto entry = [&](std::int64_t c, std::int64_t h) { return entries_ + (c * p_.H + h) * size_; };
      const auto log_decay = [&](std::int64_t x) { return kernel.log_decay(x); };
      const std::int64_t first = p_.document_offset[group.n];
      const std::int64_t last = p_.document_offset[group.n + 1] - 1;
      for (std::int64_t h = group.begin; h < group.end; ++h) load(p_.s0, group.n, h, 0, size_, S(h));
      for (std::int64_t c = first; c < last; ++c) {
        for (std::int64_t h = group.begin; h < group.end; ++h) {
          const ChunkTile<T> tile = tile_of(c, h);
          kernel.prepare(tile);
          kernel.contribution(tile, entry(c, h));
          advance_state(S(h), entry(c, h), log_decay, 0, p_.d_k, p_.d_v);
        }
      }
      for (std::int64_t h = group.begin; h < group.end; ++h) {
        std::copy(S(h), S(h) + size_, entry(last, h));
        load(a.dst, group.n, h, 0, size_, S(h));
      }
      for (std::int64_t c = last; c >= first; --c) {
        const bool ends_at_zero = c == last && a.dst == nullptr;
        for (std::int64_t h = group.begin; h < group.end; ++h) {
          const ChunkTile<T> tile = tile_of(c, h);
          const ChunkGradients<T> to(a, tile);
          input_gradients(kernel, tile, starts_at_zero(c) ? nullptr : entry(c, h), ends_at_zero ? nullptr : S(h), to);
          kernel.gradient_contribution(tile, to, group.spare);
          advance_state(S(h), group.spare, log_decay, 0, p_.d_k, p_.d_v);
        }
      }
      for (std::int64_t h = group.begin; h < group.end; ++h) save(S(h), group.n, h, 0, size_, a.ds0, a.write_ds0);
    });
  }

  const GatedLinearProblem& p_;
  std::int64_t size_;  // elements of a state
  bool fused_;
  std::int64_t window_ = 0, group_ = 0, scratch_stride_ = 0, thread_states_ = 0, thread_staged_ = 0;
  std::size_t bytes_ = 0;
  T *tables_ = nullptr, *scratch_ = nullptr;
  T* entries_ = nullptr;  // [chunk_count, H] states
  // [window, H] states, [window, H, d_k] log decays of the chunks, [H] states.
  T *states_ = nullptr, *log_decays_ = nullptr, *carried_ = nullptr;
};

// --- decode ----------------------------------------------------------------------------------------------------------

template <class T>
void gated_linear_decode_cpu(const GatedLinearDecode& a) {
  const auto* g = static_cast<const T*>(a.g);
  parallel_blocks(a.N * a.H, rows_per_block(a.d_k * a.d_v), [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t key_head = i / (a.H / a.H_k);
      const T* q = static_cast<const T*>(a.q) + key_head * a.d_k;
      const T* k = static_cast<const T*>(a.k) + key_head * a.d_k;
      const T* v = static_cast<const T*>(a.v) + i * a.d_v;
      T* S = static_cast<T*>(a.state) + i * a.d_k * a.d_v;
      T* o = static_cast<T*>(a.o) + i * a.d_v;
      std::fill(o, o + a.d_v, T(0));
      for (std::int64_t x = 0; x < a.d_k; ++x) {
        const T log_decay = a.kind == DecayKind::constant ? g[i % a.H]
                            : a.kind == DecayKind::scalar ? g[i]
                                                          : g[i * a.d_k + x];
        const StateDecay<T> decay(log_decay);
        const T query = q[x] * static_cast<T>(a.scale);
        T* row = S + x * a.d_v;
        for (std::int64_t y = 0; y < a.d_v; ++y) {
          row[y] = decay.advance(row[y], k[x] * v[y]);
          o[y] += query * row[y];
        }
      }
    }
  });
}

}  // namespace weft
