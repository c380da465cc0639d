// What the decays do inside a chunk, one class for each kind: the operands that need no state, and the gradients of
// the masked products
//
//   A_ij = sum_x K_ix K_jx e^{G_ix - G_jx}  (j < i),    P_ij = scale sum_x Q_ix K_jx e^{G_ix - G_jx}  (j <= i).
//
// n tokens of a chunk, C chunk length, D = d_k key channels, G_i inclusive sum of g.
#pragma once

#include "modules/families/channel_decays.h"
#include "modules/families/delta_rule/delta_tile.h"

namespace weft {

// Gradients of queries and keys through P and A, whose own are dP and dB, for the pairs below the diagonal. Tiles
// [n, D].
template <class T>
struct DeltaPairGradients {
  T* queries;  // Q_i of P
  T* readers;  // K_i of A
  T* writers;  // K_j of A and P
};

// Zeros from column `from` of row i to the end of its row block.
template <class T>
void clear_right(T* matrix, std::int64_t i, std::int64_t from, std::int64_t n, std::int64_t C) {
  constexpr std::int64_t kRows = DeltaRuleCpuPolicy::kRowBlock;
  std::fill(matrix + i * C + from, matrix + i * C + std::min(n, (i / kRows + 1) * kRows), T(0));
}

// No decay, or one for each token: it factors out of the sums over channels, so plain products are masked.
template <class T>
class ScalarDeltaDecay {
 public:
  ScalarDeltaDecay(const DeltaRuleProblem& p, Carver<T>& carver) : p_(p) {
    mask_ = carver.take(p.C * p.C);
    from_entry_ = carver.take(p.C);
    to_exit_ = carver.take(p.C);
    // Room for C doubles whatever T is; pieces are aligned to cache lines.
    sums_ = reinterpret_cast<double*>(carver.take(p.C * static_cast<std::int64_t>(sizeof(double) / sizeof(T))));
  }

  void operands(const DeltaTile<T>& tile, DeltaOperandSet set, const DeltaOperands<T>& to) {
    prepare(tile);
    const std::int64_t n = tile.n;
    lower_scores(n, p_.C, kRows, T(1), tile.k, tile.ld_k, tile.k, tile.ld_k, p_.d_k, to.A);
    apply_mask(n, to.A);
    scale_rows(tile.k, tile.ld_k, n, from_entry_, T(1), to.k_entry);
    scale_rows(tile.k, tile.ld_k, n, to_exit_, T(1), to.k_exit);
    std::fill(to.total, to.total + p_.d_k, total_);
    if (set == DeltaOperandSet::keys) return;
    const auto scale = static_cast<T>(p_.scale);
    lower_scores(n, p_.C, kRows, scale, tile.q, tile.ld_k, tile.k, tile.ld_k, p_.d_k, to.P);
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t j = 0; j < i; ++j) to.P[i * p_.C + j] *= mask_[i * p_.C + j];
      clear_right(to.P, i, i + 1, n, p_.C);
    }
    scale_rows(tile.q, tile.ld_k, n, from_entry_, scale, to.q_entry);
  }

  // dP and dB [n, C] are overwritten. Afterwards the functions below hold for this tile.
  void pair_gradients(const DeltaTile<T>& tile, T* dP, T* dB, const DeltaPairGradients<T>& to) {
    prepare(tile);
    const std::int64_t n = tile.n, D = p_.d_k;
    apply_mask(n, dP);
    apply_mask(n, dB);
    lower_product(n, p_.C, kRows, dP, tile.k, tile.ld_k, D, T(0), to.queries, D);
    lower_product(n, p_.C, kRows, dB, tile.k, tile.ld_k, D, T(0), to.readers, D);
    lower_transposed_product(n, p_.C, kRows, dP, tile.q, tile.ld_k, D, T(0), to.writers, D);
    lower_transposed_product(n, p_.C, kRows, dB, tile.k, tile.ld_k, D, T(1), to.writers, D);
  }

  T from_entry(std::int64_t i, std::int64_t) const { return from_entry_[i]; }  // e^{G_i}
  T to_exit(std::int64_t i, std::int64_t) const { return to_exit_[i]; }        // e^{G_n - G_i}

 private:
  static constexpr std::int64_t kRows = DeltaRuleCpuPolicy::kRowBlock;

  void prepare(const DeltaTile<T>& tile) {
    const std::int64_t n = tile.n;
    // Sums in fp64, and of nothing below where e^g is zero anyway: after a fast gate, differences of large sums must
    // still be exact for slow ones.
    constexpr double kNothingLeft = -1000.0;
    double sum = 0.0;
    for (std::int64_t i = 0; i < n; ++i) {
      if (p_.g != nullptr) {
        const T g = static_cast<const T*>(p_.g)[tile.head_offset + i * p_.H];
        sum += g < T(kNothingLeft) ? kNothingLeft : static_cast<double>(g);  // keeps NaN
      }
      sums_[i] = sum;
    }
    for (std::int64_t i = 0; i < n; ++i) from_entry_[i] = fast_exp(static_cast<T>(sums_[i]));
    for (std::int64_t i = 0; i < n; ++i) to_exit_[i] = fast_exp(static_cast<T>(sum - sums_[i]));
    for (std::int64_t i = 0; i < n; ++i) {
      T* row = mask_ + i * p_.C;
      for (std::int64_t j = 0; j < i; ++j) row[j] = fast_exp(static_cast<T>(sums_[i] - sums_[j]));
    }
    total_ = fast_exp(static_cast<T>(sum));
  }

  // Strictly lower part times the decays, zero on and right of the diagonal.
  void apply_mask(std::int64_t n, T* matrix) const {
    for (std::int64_t i = 0; i < n; ++i) {
      T* row = matrix + i * p_.C;
      const T* decay = mask_ + i * p_.C;
      for (std::int64_t j = 0; j < i; ++j) row[j] *= decay[j];
      clear_right(matrix, i, i, n, p_.C);
    }
  }

  void scale_rows(const T* rows, std::int64_t ld, std::int64_t n, const T* factors, T factor, T* to) const {
    for (std::int64_t i = 0; i < n; ++i) {
      const T f = factors[i] * factor;
      for (std::int64_t x = 0; x < p_.d_k; ++x) to[i * p_.d_k + x] = rows[i * ld + x] * f;
    }
  }

  const DeltaRuleProblem& p_;
  T* mask_;                   // [C, C] e^{G_i - G_j}, j < i
  T *from_entry_, *to_exit_;  // [C]
  double* sums_;              // [C]
  T total_ = 0;
};

// One decay for each token and key channel: block by block as channel_decays.h halves the chunk.
template <class T>
class ChannelDeltaDecay {
 public:
  ChannelDeltaDecay(const DeltaRuleProblem& p, Carver<T>& carver) : p_(p), D_(p.d_k), decays_(p.d_k) {
    decays_.carve(carver, p.C);
    K_ = carver.take(p.C * D_);
    Q_ = carver.take(p.C * D_);
    block_ = carver.take(p.C * D_);
  }

  void operands(const DeltaTile<T>& tile, DeltaOperandSet set, const DeltaOperands<T>& to) {
    const bool queries = set == DeltaOperandSet::all;
    const std::int64_t n = tile.n, C = p_.C;
    const auto scale = static_cast<T>(p_.scale);
    for (std::int64_t i = 0; i < n; ++i) {
      clear_right(to.A, i, i, n, C);
      if (!queries) continue;
      clear_right(to.P, i, i + 1, n, C);
      to.P[i * C + i] = scale * dot(tile.q + i * tile.ld_k, tile.k + i * tile.ld_k, D_);
    }
    walk(tile, [&](std::int64_t first, std::int64_t middle, std::int64_t end) {
      decay_block(tile, first, middle, end, queries);
      const std::int64_t I = end - middle, J = middle - first, at = middle * C + first;
      block_scores(I, J, D_, T(1), K_ + middle * D_, K_ + first * D_, to.A + at, C);
      if (queries) block_scores(I, J, D_, scale, Q_ + middle * D_, K_ + first * D_, to.P + at, C);
    });
    decays_.multiply(tile.k, tile.ld_k, decays_.from_entry(), 0, n, to.k_entry);
    decays_.multiply(tile.k, tile.ld_k, decays_.to_exit(), 0, n, to.k_exit);
    std::copy(decays_.total(), decays_.total() + D_, to.total);
    if (!queries) return;
    decays_.multiply(tile.q, tile.ld_k, decays_.from_entry(), 0, n, to.q_entry);
    for (std::int64_t e = 0; e < n * D_; ++e) to.q_entry[e] *= scale;
  }

  // Afterwards the functions below hold for this tile.
  void pair_gradients(const DeltaTile<T>& tile, const T* dP, const T* dB, const DeltaPairGradients<T>& to) {
    for (T* tile_of : {to.queries, to.readers, to.writers}) std::fill(tile_of, tile_of + tile.n * D_, T(0));
    walk(tile, [&](std::int64_t first, std::int64_t middle, std::int64_t end) {
      decay_block(tile, first, middle, end, true);
      const std::int64_t C = p_.C, I = end - middle, J = middle - first, at = middle * C + first;
      block_product(I, J, D_, dP + at, C, K_ + first * D_, block_);
      add_decayed(block_, decays_.from_entry(), middle, end, to.queries);
      block_product(I, J, D_, dB + at, C, K_ + first * D_, block_);
      add_decayed(block_, decays_.from_entry(), middle, end, to.readers);
      block_transposed_product(I, J, D_, dP + at, C, Q_ + middle * D_, Write::overwrite, block_);
      block_transposed_product(I, J, D_, dB + at, C, K_ + middle * D_, Write::accumulate, block_);
      add_decayed(block_, decays_.to_exit(), first, middle, to.writers);
    });
  }

  T from_entry(std::int64_t i, std::int64_t x) const { return decays_.from_entry()[i * D_ + x]; }  // e^{G_ix}
  T to_exit(std::int64_t i, std::int64_t x) const { return decays_.to_exit()[i * D_ + x]; }        // e^{G_nx - G_ix}

 private:
  template <class Visit>
  void walk(const DeltaTile<T>& tile, Visit&& visit) {
    decays_.walk(static_cast<const T*>(p_.g) + tile.channel_offset, tile.ld_g, tile.n, visit);
  }

  // K_ on J = [first, middle): keys as columns; K_ and Q_ on I = [middle, end): keys and queries as rows.
  void decay_block(const DeltaTile<T>& tile, std::int64_t first, std::int64_t middle, std::int64_t end, bool queries) {
    decays_.multiply(tile.k, tile.ld_k, decays_.to_exit(), first, middle, K_);
    decays_.multiply(tile.k, tile.ld_k, decays_.from_entry(), middle, end, K_);
    if (queries) decays_.multiply(tile.q, tile.ld_k, decays_.from_entry(), middle, end, Q_);
  }

  // Rows [begin, end) of `to` += rows * factors; `rows` starts at row `begin`.
  void add_decayed(const T* rows, const T* factors, std::int64_t begin, std::int64_t end, T* to) const {
    const std::int64_t offset = begin * D_;
    for (std::int64_t e = 0; e < (end - begin) * D_; ++e) to[offset + e] += rows[e] * factors[offset + e];
  }

  const DeltaRuleProblem& p_;
  std::int64_t D_;
  ChannelDecays<T> decays_;
  T *K_, *Q_, *block_;  // [C, D]
};

}  // namespace weft
