// How the CPU walks documents whose memory is rewritten chunk by chunk: forward, and backward from checkpoints.
//
// A memory is a vector of S numbers for each document and head. The kernel of one chunk advances it; chunks depend on
// one another, so a task takes one head of one document (backward: of a block of documents) from end to end, and the
// bits depend neither on packing nor on the number of threads.
//
// Backward needs the memory before every chunk, in reverse. It runs the chain once and keeps every K-th state, K about
// the root of the number of chunks, then runs each stretch of K chunks again: 2 K states a thread, whatever the length.
//
// A Kernel<T> has
//   Kernel(const Problem&, T* scratch);     scratch_elements(problem), state_elements(problem), line_elements(problem)
//   start(h, state)                         the memory at the start of a document
//   forward(span, state, out)               advances the state; reads into out [T, ...] unless it is null
//   backward(args, span, state, dstate, line)
//                                           dstate: from after the chunk to before it; line: sums for the parameters
//   start_gradient(dstate, line)            the adjoint of start
// and Problem has T, N, H, C, cu_seqlens [N + 1], phase [N] or null, state [N, H, S] or null.
#pragma once

#include <algorithm>
#include <cmath>

#include "autograd/carver.h"
#include "autograd/dispatch.h"
#include "autograd/parallel_for.h"
#include "modules/families/memory_span.h"

namespace weft {

template <class T, class Kernel>
class MemoryWalk {
 public:
  using Problem = typename Kernel::Problem;

  // With a null workspace the object only knows its size.
  MemoryWalk(const Problem& p, bool backward, void* workspace) : p_(p), S_(Kernel::state_elements(p)) {
    Carver<T> carver(static_cast<T*>(workspace));
    if (backward) {
      L_ = Kernel::line_elements(p);
      blocks_ = std::min<std::int64_t>(p.N, kMaxBlocks);
      lines_ = carver.take(blocks_ * p.H * L_);
      for (std::int64_t n = 0; n < p.N; ++n) {
        const std::int64_t chunks = chunk_count(n), stride = checkpoint_stride(chunks);
        kept_ = std::max(kept_, block_count(chunks, stride) + stride);
      }
    }
    Carver<T> thread(nullptr);
    carve_thread(thread);
    thread_elements_ = thread.used();
    scratch_ = carver.take(thread_elements_ * task_threads());
    bytes_ = static_cast<std::size_t>(carver.used()) * sizeof(T);
  }
  std::size_t bytes() const { return bytes_; }

  // out [T, ...] and the final states [N, H, S], null: not wanted.
  void forward(T* out, T* final_state) {
    for_each_task(p_.N * p_.H, [&](std::int64_t task) {
      const std::int64_t n = task / p_.H, h = task % p_.H;
      const Thread own = thread();
      Kernel kernel(p_, own.kernel);
      T* state = final_state == nullptr ? own.state : final_state + (n * p_.H + h) * S_;
      load_start(kernel, n, h, state);
      for (std::int64_t i = 0; i < chunk_count(n); ++i) kernel.forward(span(n, h, i), state, out);
    });
  }

  // Token gradients go where the arguments say; sums for the parameters are then in the lines, for sum_lines().
  template <class Args>
  void backward(const Args& a, const T* dfinal, T* dinitial, Write write) {
    const std::int64_t documents = blocks_ == 0 ? 0 : block_count(p_.N, blocks_);
    for_each_task(blocks_ * p_.H, [&](std::int64_t task) {
      const std::int64_t block = task / p_.H, h = task % p_.H;
      const Thread own = thread();
      Kernel kernel(p_, own.kernel);
      T* line = lines_ + task * L_;
      std::fill(line, line + L_, T(0));
      for (std::int64_t n = block * documents; n < std::min(p_.N, (block + 1) * documents); ++n) {
        if (dfinal == nullptr) {
          std::fill(own.dstate, own.dstate + S_, T(0));
        } else {
          std::copy_n(dfinal + (n * p_.H + h) * S_, S_, own.dstate);
        }
        backward_document(a, kernel, own, n, h, line);
        if (p_.state == nullptr) {
          kernel.start_gradient(own.dstate, line);
        } else if (dinitial != nullptr) {
          T* target = dinitial + (n * p_.H + h) * S_;
          for (std::int64_t i = 0; i < S_; ++i) store(target[i], own.dstate[i], write);
        }
      }
    });
  }

  // target [H, width] = or += elements [at, at + width) of the lines; null: not wanted.
  void sum_lines(std::int64_t at, std::int64_t width, void* target, Write write) const {
    if (target == nullptr) return;
    for (std::int64_t h = 0; h < p_.H; ++h) {
      for (std::int64_t i = 0; i < width; ++i) {
        T sum = 0;
        for (std::int64_t block = 0; block < blocks_; ++block) sum += lines_[(block * p_.H + h) * L_ + at + i];
        store(static_cast<T*>(target)[h * width + i], sum, write);
      }
    }
  }
  // The same for what the heads share: target [width].
  void sum_lines_of_heads(std::int64_t at, std::int64_t width, void* target, Write write) const {
    if (target == nullptr) return;
    for (std::int64_t i = 0; i < width; ++i) {
      T sum = 0;
      for (std::int64_t line = 0; line < blocks_ * p_.H; ++line) sum += lines_[line * L_ + at + i];
      store(static_cast<T*>(target)[i], sum, write);
    }
  }

 private:
  static constexpr std::int64_t kMaxBlocks = 16;

  struct Thread {
    T *kernel, *state, *dstate, *kept;
  };
  Thread carve_thread(Carver<T>& carver) const {
    T* kernel = carver.take(Kernel::scratch_elements(p_));
    T* state = carver.take(S_);
    T* dstate = carver.take(S_);
    return {kernel, state, dstate, carver.take(kept_ * S_)};
  }
  Thread thread() const {
    Carver<T> carver(scratch_ + omp_get_thread_num() * thread_elements_);
    return carve_thread(carver);
  }

  std::int64_t length(std::int64_t n) const { return p_.cu_seqlens[n + 1] - p_.cu_seqlens[n]; }
  std::int64_t phase(std::int64_t n) const { return p_.phase == nullptr ? 0 : p_.phase[n]; }
  std::int64_t chunk_count(std::int64_t n) const {
    return length(n) == 0 ? 0 : block_count(phase(n) + length(n), p_.C);
  }
  static std::int64_t checkpoint_stride(std::int64_t chunks) {
    return std::max<std::int64_t>(1, static_cast<std::int64_t>(std::ceil(std::sqrt(static_cast<double>(chunks)))));
  }

  MemorySpan span(std::int64_t n, std::int64_t h, std::int64_t chunk) const {
    const std::int64_t offset = chunk * p_.C - phase(n);  // of the chunk's first token in the document, may be < 0
    const std::int64_t begin = std::max<std::int64_t>(0, offset), end = std::min(length(n), offset + p_.C);
    return {h, p_.cu_seqlens[n] + begin, end - begin, begin - offset, end == offset + p_.C};
  }

  void load_start(Kernel& kernel, std::int64_t n, std::int64_t h, T* state) const {
    if (p_.state == nullptr) {
      kernel.start(h, state);
    } else {
      std::copy_n(static_cast<const T*>(p_.state) + (n * p_.H + h) * S_, S_, state);
    }
  }

  template <class Args>
  void backward_document(const Args& a, Kernel& kernel, const Thread& own, std::int64_t n, std::int64_t h, T* line) {
    const std::int64_t chunks = chunk_count(n);
    if (chunks == 0) return;
    const std::int64_t stride = checkpoint_stride(chunks), stretches = block_count(chunks, stride);
    T* checkpoints = own.kept;              // [stretches, S]
    T* before = own.kept + stretches * S_;  // [stride, S]
    load_start(kernel, n, h, own.state);
    for (std::int64_t i = 0; i <= (stretches - 1) * stride; ++i) {
      if (i % stride == 0) std::copy_n(own.state, S_, checkpoints + i / stride * S_);
      if (i < (stretches - 1) * stride) kernel.forward(span(n, h, i), own.state, nullptr);
    }
    for (std::int64_t stretch = stretches - 1; stretch >= 0; --stretch) {
      const std::int64_t first = stretch * stride, last = std::min(chunks, first + stride) - 1;
      std::copy_n(checkpoints + stretch * S_, S_, before);
      for (std::int64_t i = first; i < last; ++i) {
        T* next = before + (i - first + 1) * S_;
        std::copy_n(next - S_, S_, next);
        kernel.forward(span(n, h, i), next, nullptr);
      }
      for (std::int64_t i = last; i >= first; --i) {
        kernel.backward(a, span(n, h, i), before + (i - first) * S_, own.dstate, line);
      }
    }
  }

  const Problem& p_;
  std::int64_t S_, L_ = 0, blocks_ = 0, kept_ = 0, thread_elements_ = 0;
  std::size_t bytes_ = 0;
  T *lines_ = nullptr, *scratch_ = nullptr;
};

}  // namespace weft
