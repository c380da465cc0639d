// Reading of titans_memory.h without writing, on the CPU.
#pragma once

#include "autograd/blas.h"
#include "autograd/parallel_for.h"
#include "modules/families/titans_memory/titans_memory.h"

namespace weft {

// f(h, document, row of its first token, tokens) for every head and document with tokens; a head's documents in order,
// on one thread, and never a head alone: the BLAS would split a product over threads and round differently.
template <class Args, class F>
void for_each_read(const Args& a, F&& f) {
  parallel_for(std::max<std::int64_t>(a.H, 2), Schedule::fixed, [&](std::int64_t h) {
    for (std::int64_t n = 0; h < a.H && n < a.N; ++n) {
      const std::int64_t begin = a.cu_seqlens[n], tokens = a.cu_seqlens[n + 1] - begin;
      if (tokens > 0) f(h, n, begin * a.H + h, tokens);
    }
  });
}

template <class T>
void titans_read_forward_cpu(const TitansReadForward& a) {
  for_each_read(a, [&](std::int64_t h, std::int64_t n, std::int64_t row, std::int64_t tokens) {
    gemm(Op::none, Op::none, tokens, a.d_v, a.d_k, T(1), static_cast<const T*>(a.q) + row * a.d_k, a.H * a.d_k,
         static_cast<const T*>(a.memory) + n * a.document_stride + h * a.head_stride, a.d_v, T(0),
         static_cast<T*>(a.o) + row * a.d_v, a.H * a.d_v);
  });
}

// `sums` [H, d_k, d_v].
template <class T>
void titans_read_backward_cpu(const TitansReadBackward& a, T* sums) {
  auto* dq = static_cast<T*>(a.dq);
  auto* dmemory = static_cast<T*>(a.dmemory);
  const std::int64_t size = a.d_k * a.d_v;
  const bool shared = a.document_stride == 0;
  if (dmemory != nullptr && a.write_dmemory == Write::overwrite) std::fill_n(dmemory, a.memory_elements, T(0));
  std::fill_n(sums, a.H * size, T(0));
  const auto add = [&](const T* sum, std::int64_t at) {
    for (std::int64_t i = 0; i < size; ++i) dmemory[at + i] += sum[i];
  };
  for_each_read(a, [&](std::int64_t h, std::int64_t n, std::int64_t row, std::int64_t tokens) {
    const T* d_o = static_cast<const T*>(a.d_o) + row * a.d_v;
    const std::int64_t at = n * a.document_stride + h * a.head_stride;
    if (dq != nullptr) {
      gemm(Op::none, Op::transpose, tokens, a.d_k, a.d_v, T(1), d_o, a.H * a.d_v, static_cast<const T*>(a.memory) + at,
           a.d_v, a.write_dq == Write::overwrite ? T(0) : T(1), dq + row * a.d_k, a.H * a.d_k);
    }
    if (dmemory == nullptr) return;
    T* sum = sums + h * size;
    gemm(Op::transpose, Op::none, a.d_k, a.d_v, tokens, T(1), static_cast<const T*>(a.q) + row * a.d_k, a.H * a.d_k,
         d_o, a.H * a.d_v, shared ? T(1) : T(0), sum, a.d_v);
    if (!shared) add(sum, at);
  });
  for (std::int64_t h = 0; dmemory != nullptr && shared && h < a.H; ++h) add(sums + h * size, h * a.head_stride);
}

}  // namespace weft
