// One chunk of one value head: the walk over the states, forwards and backwards, and the gradients of its inputs
// (README.md, "Chunks"). The walks take a block of value columns; columns do not depend on each other.
//
// n tokens of the chunk, D = d_k key channels, S state at entry, dS gradient of the state at exit, both [D, d_v].
#pragma once

#include "modules/families/delta_rule/delta_decay_cpu.h"
#include "modules/families/delta_rule/unit_lower_solve.h"

namespace weft {

// Value columns [first, first + width).
struct DeltaColumns {
  std::int64_t first, width;
};

template <class T, DeltaDecay kDecay>
class DeltaChunk {
 public:
  DeltaChunk(const DeltaRuleProblem& p, T* scratch) : DeltaChunk(p, Carver<T>(scratch)) {}
  static std::int64_t scratch_elements(const DeltaRuleProblem& p) { return DeltaChunk(p, nullptr).size_; }

  void operands(const DeltaTile<T>& tile, DeltaOperandSet set, const DeltaOperands<T>& to) {
    decay_.operands(tile, set, to);
  }

  // W, U: prediction errors and updates, from the entry state.
  void updates(const DeltaTile<T>& tile, const DeltaOperands<T>& in, DeltaColumns columns, const T* S) const {
    const std::int64_t n = tile.n, at = columns.first;
    for (std::int64_t i = 0; i < n; ++i) {
      const T* v = tile.v + i * tile.ld_v + at;
      std::copy(v, v + columns.width, in.W + i * p_.d_v + at);
    }
    gemm(Op::none, Op::none, n, columns.width, p_.d_k, T(-1), in.k_entry, p_.d_k, S + at, p_.d_v, T(1), in.W + at,
         p_.d_v);
    solve_forwards(n, p_.C, in.A, tile.beta, p_.H, columns.width, p_.d_v, in.W + at, in.U + at);
  }

  // o = scale (Q e^G) S + P U, rows ld_v apart.
  void outputs(const DeltaTile<T>& tile, const DeltaOperands<T>& in, DeltaColumns columns, const T* S, T* o) const {
    const std::int64_t at = columns.first;
    gemm(Op::none, Op::none, tile.n, columns.width, p_.d_k, T(1), in.q_entry, p_.d_k, S + at, p_.d_v, T(0), o + at,
         tile.ld_v);
    lower_product(tile.n, p_.C, kRows, in.P, in.U + at, p_.d_v, columns.width, T(1), o + at, tile.ld_v);
  }

  // S <- diag(e^{G_n}) S + (K e^{G_n - G})^T U.
  void advance(const DeltaTile<T>& tile, const DeltaOperands<T>& in, DeltaColumns columns, T* S) const {
    decay_state(in, columns, S);
    gemm(Op::transpose, Op::none, p_.d_k, columns.width, tile.n, T(1), in.k_exit, p_.d_k, in.U + columns.first, p_.d_v,
         T(1), S + columns.first, p_.d_v);
  }

  // Y, dR and the kept dS, the gradient of the values, and dS <- the gradient of the entry state. After updates().
  void retreat(const DeltaTile<T>& tile, const DeltaGradientOperands<T>& in, DeltaColumns columns, T* dS,
               const DeltaGradients<T>& to) const {
    const std::int64_t n = tile.n, D = p_.d_k, d_v = p_.d_v, at = columns.first, w = columns.width;
    for (std::int64_t x = 0; x < D; ++x) {
      std::copy(dS + x * d_v + at, dS + x * d_v + at + w, in.dS + x * d_v + at);
    }
    gemm(Op::none, Op::none, n, w, D, T(1), in.k_exit, D, dS + at, d_v, T(0), in.Y + at, d_v);
    lower_transposed_product(n, p_.C, kRows, in.P, to.d_o + at, tile.ld_v, w, T(1), in.Y + at, d_v);
    solve_backwards(n, p_.C, in.A, tile.beta, p_.H, w, d_v, in.Y + at, in.dR + at);
    if (to.dv != nullptr) {
      for (std::int64_t i = 0; i < n; ++i) {
        for (std::int64_t y = at; y < at + w; ++y) store(to.dv[i * tile.ld_v + y], in.dR[i * d_v + y], to.write_dv);
      }
    }
    decay_state(in, columns, dS);
    gemm(Op::transpose, Op::none, D, w, n, T(1), in.q_entry, D, to.d_o + at, tile.ld_v, T(1), dS + at, d_v);
    gemm(Op::transpose, Op::none, D, w, n, T(-1), in.k_entry, D, in.dR + at, d_v, T(1), dS + at, d_v);
  }

  // Gradients of queries, keys, decays and betas, which need all columns. After retreat(); S is the entry state. One
  // object sees the value heads of a key head one after the other.
  void gradients(const DeltaTile<T>& tile, const DeltaGradientOperands<T>& in, const T* S,
                 const DeltaGradients<T>& to) {
    const std::int64_t n = tile.n, D = p_.d_k, d_v = p_.d_v;
    const auto scale = static_cast<T>(p_.scale);
    if (to.dbeta != nullptr) {
      for (std::int64_t i = 0; i < n; ++i) {
        store(to.dbeta[i * p_.H], dot(in.Y + i * d_v, in.W + i * d_v, d_v), to.write_dbeta);
      }
    }
    lower_scores(n, p_.C, kRows, scale, to.d_o, tile.ld_v, in.U, d_v, d_v, dP_);
    lower_scores(n, p_.C, kRows, T(-1), in.dR, d_v, in.U, d_v, d_v, dB_);
    for (std::int64_t i = 0; i < n; ++i) diagonal_[i] = dP_[i * p_.C + i];
    decay_.pair_gradients(tile, dP_, dB_, {queries_, readers_, writers_});

    gemm(Op::none, Op::transpose, n, D, d_v, scale, to.d_o, tile.ld_v, S, d_v, T(0), leavers_, D);
    add_from_entry(n, leavers_, queries_);
    gemm(Op::none, Op::transpose, n, D, d_v, T(-1), in.dR, d_v, S, d_v, T(0), leavers_, D);
    add_from_entry(n, leavers_, readers_);
    gemm(Op::none, Op::transpose, n, D, d_v, T(1), in.U, d_v, in.dS, d_v, T(0), leavers_, D);
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t x = 0; x < D; ++x) leavers_[i * D + x] *= decay_.to_exit(i, x);
    }
    if (to.dg != nullptr) decay_gradient(tile, in, S, to);
    store_queries_and_keys(tile, to);
  }

 private:
  static constexpr std::int64_t kRows = DeltaRuleCpuPolicy::kRowBlock;
  using Decay = std::conditional_t<kDecay == DeltaDecay::channel, ChannelDeltaDecay<T>, ScalarDeltaDecay<T>>;

  DeltaChunk(const DeltaRuleProblem& p, Carver<T>&& carver) : p_(p), decay_(p, carver) {
    dP_ = carver.take(p.C * p.C);
    dB_ = carver.take(p.C * p.C);
    diagonal_ = carver.take(p.C);
    queries_ = carver.take(p.C * p.d_k);
    readers_ = carver.take(p.C * p.d_k);
    writers_ = carver.take(p.C * p.d_k);
    leavers_ = carver.take(p.C * p.d_k);
    suffixes_ = carver.take(p.C * p.d_k);
    group_dq_ = carver.take(p.C * p.d_k);
    group_dk_ = carver.take(p.C * p.d_k);
    row_ = carver.take(p.d_k);
    size_ = carver.used();
  }

  void decay_state(const DeltaOperands<T>& in, DeltaColumns columns, T* S) const {
    for (std::int64_t x = 0; x < p_.d_k; ++x) {
      T* row = S + x * p_.d_v + columns.first;
      const T e = in.total[x];
      for (std::int64_t y = 0; y < columns.width; ++y) row[y] *= e;
    }
  }

  void add_from_entry(std::int64_t n, const T* rows, T* to) const {
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t x = 0; x < p_.d_k; ++x) {
        to[i * p_.d_k + x] += rows[i * p_.d_k + x] * decay_.from_entry(i, x);
      }
    }
  }

  // dg_t per channel: pairs (i >= t > j) of A and P, what tokens i >= t read of the entry state, what keys j < t leave
  // in the exit state, and the entry state that is still alive at the exit. The pairs i = j are not in the tiles: they
  // cross no decay, and for fast gates everything else is far smaller. A scalar decay receives the sum over channels.
  void decay_gradient(const DeltaTile<T>& tile, const DeltaGradientOperands<T>& in, const T* S,
                      const DeltaGradients<T>& to) {
    const std::int64_t n = tile.n, D = p_.d_k;
    for (std::int64_t x = 0; x < D; ++x) {
      row_[x] = in.total[x] * dot(S + x * p_.d_v, in.dS + x * p_.d_v, p_.d_v);
    }
    for (std::int64_t t = n - 1; t >= 0; --t) {
      const T* q = tile.q + t * tile.ld_k;
      const T* k = tile.k + t * tile.ld_k;
      for (std::int64_t x = 0; x < D; ++x) {
        const std::int64_t e = t * D + x;
        row_[x] += q[x] * queries_[e] + k[x] * (readers_[e] - writers_[e]);
        suffixes_[e] = row_[x];
      }
    }
    std::fill(row_, row_ + D, T(0));
    for (std::int64_t t = 0; t < n; ++t) {
      const T* k = tile.k + t * tile.ld_k;
      T* total = suffixes_ + t * D;
      for (std::int64_t x = 0; x < D; ++x) {
        total[x] += row_[x];
        row_[x] += k[x] * leavers_[t * D + x];
      }
      if constexpr (kDecay == DeltaDecay::channel) {
        for (std::int64_t x = 0; x < D; ++x) store(to.dg[t * tile.ld_g + x], total[x], to.write_dg);
      } else {
        T sum = 0;
#pragma omp simd reduction(+ : sum)
        for (std::int64_t x = 0; x < D; ++x) sum += total[x];
        store(to.dg[t * p_.H], sum, to.write_dg);
      }
    }
  }

  // The value heads of a key head come one after the other; their sum is stored with the last.
  void store_queries_and_keys(const DeltaTile<T>& tile, const DeltaGradients<T>& to) const {
    const std::int64_t n = tile.n, D = p_.d_k;
    const Write write = tile.first_of_group ? Write::overwrite : Write::accumulate;
    for (std::int64_t i = 0; i < n; ++i) {
      const T* q = tile.q + i * tile.ld_k;
      const T* k = tile.k + i * tile.ld_k;
      const T both = diagonal_[i];
      for (std::int64_t x = 0; x < D; ++x) {
        const std::int64_t e = i * D + x;
        store(group_dq_[e], queries_[e] + both * k[x], write);
        store(group_dk_[e], readers_[e] + writers_[e] + leavers_[e] + both * q[x], write);
      }
    }
    if (!tile.last_of_group) return;
    if (to.dq != nullptr) store_rows(group_dq_, n, D, to.dq, tile.ld_k, to.write_dq);
    if (to.dk != nullptr) store_rows(group_dk_, n, D, to.dk, tile.ld_k, to.write_dk);
  }

  const DeltaRuleProblem& p_;
  Decay decay_;
  std::int64_t size_ = 0;
  T *dP_, *dB_, *diagonal_;           // [C, C], [C, C], [C]
  T *queries_, *readers_, *writers_;  // [C, D] gradients of Q as rows, K as rows, K as columns
  T* leavers_;                        // [C, D] gradients of K in the exit state; before that, what the entry state adds
  T *group_dq_, *group_dk_;           // [C, D] sums over the value heads of a key head
  T *suffixes_, *row_;                // [C, D], [D]
};

}  // namespace weft
