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

template <class Args>
std::int64_t read_matrix(const Args& a, std::int64_t h, std::int64_t n) {
  return (a.states ? (n * a.H + h) * 3 : h) * a.d_k * a.d_v;
}

template <class T>
void titans_read_forward_cpu(const TitansReadForward& a) {
  for_each_read(a, [&](std::int64_t h, std::int64_t n, std::int64_t row, std::int64_t tokens) {
    gemm(Op::none, Op::none, tokens, a.d_v, a.d_k, T(1), static_cast<const T*>(a.q) + row * a.d_k, a.H * a.d_k,
         static_cast<const T*>(a.memory) + read_matrix(a, h, n), a.d_v, T(0), static_cast<T*>(a.o) + row * a.d_v,
         a.H * a.d_v);
  });
}

// `sums` [H, d_k, d_v].
template <class T>
void titans_read_backward_cpu(const TitansReadBackward& a, T* sums) {
  auto* dq = static_cast<T*>(a.dq);
  auto* dmemory = static_cast<T*>(a.dmemory);
  const std::int64_t size = a.d_k * a.d_v;
  if (dmemory != nullptr && a.states && a.write_dmemory == Write::overwrite) {
    std::fill_n(dmemory, a.N * 3 * a.H * size, T(0));
  }
  std::fill_n(sums, a.H * size, T(0));
  for_each_read(a, [&](std::int64_t h, std::int64_t n, std::int64_t row, std::int64_t tokens) {
    const T* d_o = static_cast<const T*>(a.d_o) + row * a.d_v;
    const T* q = static_cast<const T*>(a.q) + row * a.d_k;
    const std::int64_t at = read_matrix(a, h, n);
    if (dq != nullptr) {
      gemm(Op::none, Op::transpose, tokens, a.d_k, a.d_v, T(1), d_o, a.H * a.d_v, static_cast<const T*>(a.memory) + at,
           a.d_v, a.write_dq == Write::overwrite ? T(0) : T(1), dq + row * a.d_k, a.H * a.d_k);
    }
    if (dmemory == nullptr) return;
    T* sum = sums + h * size;
    gemm(Op::transpose, Op::none, a.d_k, a.d_v, tokens, T(1), q, a.H * a.d_k, d_o, a.H * a.d_v, a.states ? T(0) : T(1),
         sum, a.d_v);
    for (std::int64_t i = 0; a.states && i < size; ++i) store(dmemory[at + i], sum[i], a.write_dmemory);
  });
  if (dmemory == nullptr || a.states) return;
  for (std::int64_t i = 0; i < a.H * size; ++i) store(dmemory[i], sums[i], a.write_dmemory);
}

}  // namespace weft
