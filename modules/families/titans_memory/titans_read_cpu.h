// Reading of titans_memory.h without writing, on the CPU.
#pragma once

#include "autograd/blas.h"
#include "autograd/carver.h"
#include "autograd/gelu.h"
#include "autograd/parallel_for.h"
#include "modules/families/titans_memory/titans_memory.h"

namespace weft {

// A task takes one head of all documents, blocks of rows in order.
template <class T>
class TitansReadCpu {
 public:
  // With a null workspace the object only knows its size.
  TitansReadCpu(const TitansReadProblem& p, bool backward, void* workspace)
      : p_(p), in_(p.m > 0 ? p.m : p.d_k), first_(p.d_k * p.m), P_(titans_memory_size(p.d_k, p.m, p.d_v)) {
    Carver<T> carver(static_cast<T*>(workspace));
    for (T** x : {&a_, &h_, &da_}) *x = carver.take(p.H * kRows * p.m);
    if (backward) sums_ = carver.take(p.H * P_);
    bytes_ = static_cast<std::size_t>(carver.used()) * sizeof(T);
  }
  std::size_t bytes() const { return bytes_; }

  void forward(T* o) {
    for_each_block([&](const Block& b) {
      const T* x = hidden(b);
      gemm(Op::none, Op::none, b.rows, p_.d_v, in_, T(1), x, b.ld, b.w2, p_.d_v, T(0), o + b.row * p_.d_v,
           p_.H * p_.d_v);
    });
  }

  void backward(const TitansReadBackward& a) {
    if (a.dstate != nullptr && a.write_dstate == Write::overwrite) {
      std::fill_n(static_cast<T*>(a.dstate), p_.N * p_.document_stride, T(0));
    }
    std::fill_n(sums_, p_.H * P_, T(0));
    for_each_block([&](const Block& b) {
      const T* d_o = static_cast<const T*>(a.d_o) + b.row * p_.d_v;
      T* dq = a.dq == nullptr ? nullptr : static_cast<T*>(a.dq) + b.row * p_.d_k;
      const T beta = a.write_dq == Write::overwrite ? T(0) : T(1);
      const T* x = hidden(b);
      T* sum = sums_ + b.head * P_;
      gemm(Op::transpose, Op::none, in_, p_.d_v, b.rows, T(1), x, b.ld, d_o, p_.H * p_.d_v, T(1), sum + first_, p_.d_v);
      if (p_.m == 0) {
        if (dq != nullptr) through(b, d_o, p_.H * p_.d_v, b.w2, p_.d_v, beta, dq);
      } else {
        T *da = da_ + b.head * kRows * p_.m, *pre = a_ + b.head * kRows * p_.m;
        gemm(Op::none, Op::transpose, b.rows, p_.m, p_.d_v, T(1), d_o, p_.H * p_.d_v, b.w2, p_.d_v, T(0), da, p_.m);
        const GeluFunction gelu;
#pragma omp simd
        for (std::int64_t i = 0; i < b.rows * p_.m; ++i) da[i] *= gelu.slope(pre[i]);
        gemm(Op::transpose, Op::none, p_.d_k, p_.m, b.rows, T(1), b.q, p_.H * p_.d_k, da, p_.m, T(1), sum, p_.m);
        if (dq != nullptr) through(b, da, p_.m, b.w1, p_.m, beta, dq);
      }
      if (p_.state == nullptr || !b.last) return;
      if (a.dstate != nullptr) {
        T* target = static_cast<T*>(a.dstate) + b.document * p_.document_stride + b.head * p_.head_stride;
        for (std::int64_t i = 0; i < P_; ++i) target[i] += sum[i];
      }
      std::fill_n(sum, P_, T(0));
    });
    const auto store_weights = [&](void* to, Write write, std::int64_t at, std::int64_t elements) {
      for (std::int64_t i = 0; to != nullptr && i < p_.H * elements; ++i) {
        store(static_cast<T*>(to)[i], sums_[i / elements * P_ + at + i % elements], write);
      }
    };
    if (p_.m > 0) store_weights(a.dw1, a.write_dw1, 0, first_);
    store_weights(a.dw2, a.write_dw2, first_, P_ - first_);
  }

 private:
  static constexpr std::int64_t kRows = 64;

  struct Block {
    std::int64_t head, document, row, rows;
    bool last;  // of its document
    const T *q, *w1, *w2;
    std::int64_t ld;  // of the rows that enter w2
  };

  // Never one head alone: the BLAS would split a product over threads and round differently.
  template <class F>
  void for_each_block(F&& f) {
    parallel_for(std::max<std::int64_t>(p_.H, 2), Schedule::fixed, [&](std::int64_t h) {
      for (std::int64_t n = 0; h < p_.H && n < p_.N; ++n) {
        for (std::int64_t t = p_.cu_seqlens[n]; t < p_.cu_seqlens[n + 1]; t += kRows) {
          const std::int64_t end = std::min<std::int64_t>(t + kRows, p_.cu_seqlens[n + 1]);
          Block b{.head = h,
                  .document = n,
                  .row = t * p_.H + h,
                  .rows = end - t,
                  .last = end == p_.cu_seqlens[n + 1],
                  .q = static_cast<const T*>(p_.q) + (t * p_.H + h) * p_.d_k,
                  .w1 = nullptr,
                  .w2 = nullptr,
                  .ld = p_.m > 0 ? p_.m : p_.H * p_.d_k};
          if (p_.state != nullptr) {
            b.w1 = static_cast<const T*>(p_.state) + n * p_.document_stride + h * p_.head_stride;
            b.w2 = b.w1 + first_;
          } else {
            if (p_.m > 0) b.w1 = static_cast<const T*>(p_.w1) + h * first_;
            b.w2 = static_cast<const T*>(p_.w2) + h * (P_ - first_);
          }
          f(b);
        }
      }
    });
  }

  // The rows that enter w2.
  const T* hidden(const Block& b) const {
    if (p_.m == 0) return b.q;
    T *a = a_ + b.head * kRows * p_.m, *x = h_ + b.head * kRows * p_.m;
    gemm(Op::none, Op::none, b.rows, p_.m, p_.d_k, T(1), b.q, p_.H * p_.d_k, b.w1, p_.m, T(0), a, p_.m);
    const GeluFunction gelu;
#pragma omp simd
    for (std::int64_t i = 0; i < b.rows * p_.m; ++i) x[i] = gelu.value(a[i]);
    return x;
  }
  // dq = beta dq + dy W^T
  void through(const Block& b, const T* dy, std::int64_t ld, const T* W, std::int64_t width, T beta, T* dq) const {
    gemm(Op::none, Op::transpose, b.rows, p_.d_k, width, T(1), dy, ld, W, width, beta, dq, p_.H * p_.d_k);
  }

  const TitansReadProblem& p_;
  std::int64_t in_, first_, P_;  // rows of w2; numbers of w1; of both
  std::size_t bytes_ = 0;
  T *a_ = nullptr, *h_ = nullptr, *da_ = nullptr;  // [H, kRows, m]
  T* sums_ = nullptr;                              // [H, P]
};

}  // namespace weft
