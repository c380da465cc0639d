// Chunks of the constant and scalar decay kinds: one product of queries and keys, a mask of decays e^{G_i - G_j} <= 1.
//
// n tokens of a chunk, C chunk length, S state at entry, dS gradient of the state at exit, G_i inclusive sum of g.
#pragma once

#include "modules/families/gated_linear/chunk_tile.h"
#include "modules/families/gated_linear/gated_linear_policy.h"

namespace weft {

// Powers e^{g m} of constant decays, m = 0..C, forwards and backwards: [H][2][C + 1].
inline std::int64_t constant_decay_elements(const GatedLinearProblem& p) {
  return p.kind == DecayKind::constant ? p.H * 2 * (p.C + 1) : 0;
}
template <class T>
void constant_decay_tables(const GatedLinearProblem& p, T* tables) {
  if (p.kind != DecayKind::constant) return;
  for (std::int64_t h = 0; h < p.H; ++h) {
    T* forwards = tables + h * 2 * (p.C + 1);
    T* backwards = forwards + p.C + 1;
    const double g = static_cast<double>(static_cast<const T*>(p.g)[h]);
    // Each from its own exact product: repeated multiplication would accumulate rounding.
    for (std::int64_t m = 0; m <= p.C; ++m) {
      forwards[m] = static_cast<T>(std::exp(g * static_cast<double>(m)));
      backwards[p.C - m] = forwards[m];
    }
  }
}

template <class T, DecayKind kKind>
class ScalarDecayChunk {
 public:
  ScalarDecayChunk(const GatedLinearProblem& p, T* scratch, const T* tables) : p_(p), tables_(tables) {
    Carver<T> carver(scratch);
    carve(carver);
  }
  static std::int64_t scratch_elements(const GatedLinearProblem& p) {
    ScalarDecayChunk counting(p, nullptr, nullptr);
    return counting.size_;
  }

  // Decays of the chunk; before contribution() and gradient_contribution().
  void prepare(const ChunkTile<T>& tile) {
    const std::int64_t n = tile.n;
    if constexpr (kKind == DecayKind::constant) {
      powers_ = tables_ + tile.h * 2 * (p_.C + 1);
      backward_powers_ = powers_ + p_.C + 1;
      from_entry_ = powers_ + 1;
      to_exit_ = backward_powers_ + p_.C - n + 1;
      total_ = static_cast<T>(static_cast<double>(static_cast<const T*>(p_.g)[tile.h]) * static_cast<double>(n));
    } else {
      // Sums in fp64, and of nothing below where e^g is zero anyway: after a fast gate, differences of large sums must
      // still be exact for slow ones.
      constexpr double kNothingLeft = -1000.0;
      const T* g = static_cast<const T*>(p_.g) + tile.gate_offset;
      double sum = 0.0;
      for (std::int64_t i = 0; i < n; ++i) {
        const T g_i = g[i * p_.H];
        sums_[i] = sum += g_i < T(kNothingLeft) ? kNothingLeft : static_cast<double>(g_i);  // keeps NaN
      }
      for (std::int64_t i = 0; i < n; ++i) own_from_entry_[i] = fast_exp(static_cast<T>(sums_[i]));
      for (std::int64_t i = 0; i < n; ++i) own_to_exit_[i] = fast_exp(static_cast<T>(sum - sums_[i]));
      from_entry_ = own_from_entry_;
      to_exit_ = own_to_exit_;
      total_ = static_cast<T>(sum);
    }
  }

  // The chunk multiplies row x of the state by e to this.
  T log_decay(std::int64_t) const { return total_; }

  // o = scale (Q e^G) S + P V. S may be null (zero). Leaves the decays prepared.
  void outputs(const ChunkTile<T>& tile, const T* S, T* o) {
    prepare(tile);
    const std::int64_t n = tile.n;
    lower_scores(n, p_.C, kRows, static_cast<T>(p_.scale), tile.q, tile.ld_k, tile.k, tile.ld_k, p_.d_k, A_);
    for (std::int64_t i = 0; i < n; ++i) {
      T* row = A_ + i * p_.C;
      const T* w = decay_row(i);
      for (std::int64_t j = 0; j <= i; ++j) row[j] *= w[j];
      for (std::int64_t j = i + 1; j < block_end(i, n); ++j) row[j] = 0;
    }
    if (S != nullptr) {
      gemm(Op::none, Op::none, n, p_.d_v, p_.d_k, static_cast<T>(p_.scale), tile.q, tile.ld_k, S, p_.d_v, T(0), o,
           tile.ld_v);
      scale_rows(o, n, p_.d_v, tile.ld_v, from_entry_);
    }
    lower_product(n, p_.C, kRows, A_, tile.v, tile.ld_v, p_.d_v, S != nullptr ? T(1) : T(0), o, tile.ld_v);
  }

  // U = (K e^{G_n - G})^T V: what the chunk adds to the decayed state.
  void contribution(const ChunkTile<T>& tile, T* U) {
    copy_scaled(tile.k, tile.n, p_.d_k, tile.ld_k, to_exit_, T(1), key_tile_);
    gemm(Op::transpose, Op::none, p_.d_k, p_.d_v, tile.n, T(1), key_tile_, p_.d_k, tile.v, tile.ld_v, T(0), U, p_.d_v);
  }

  // W = scale (Q e^G)^T dO: what the chunk adds to the decayed gradient of the state.
  void gradient_contribution(const ChunkTile<T>& tile, const ChunkGradients<T>& to, T* W) {
    copy_scaled(tile.q, tile.n, p_.d_k, tile.ld_k, from_entry_, static_cast<T>(p_.scale), key_tile_);
    gemm(Op::transpose, Op::none, p_.d_k, p_.d_v, tile.n, T(1), key_tile_, p_.d_k, to.d_o, tile.ld_v, T(0), W, p_.d_v);
  }

  // Gradients of the chunk's inputs. S and dS may be null (zero). Leaves the decays prepared.
  void gradients(const ChunkTile<T>& tile, const T* S, const T* dS, const ChunkGradients<T>& to) {
    const std::int64_t n = tile.n;
    const auto scale = static_cast<T>(p_.scale);
    prepare(tile);
    lower_scores(n, p_.C, kRows, T(1), tile.q, tile.ld_k, tile.k, tile.ld_k, p_.d_k, A_);
    lower_scores(n, p_.C, kRows, T(1), to.d_o, tile.ld_v, tile.v, tile.ld_v, p_.d_v, B_);
    mask_pair(n, scale);

    if (S != nullptr) {
      gemm(Op::none, Op::transpose, n, p_.d_k, p_.d_v, scale, to.d_o, tile.ld_v, S, p_.d_v, T(0), key_tile_, p_.d_k);
      scale_rows(key_tile_, n, p_.d_k, p_.d_k, from_entry_);
      for (std::int64_t i = 0; i < n; ++i) {
        crossing_[i] += static_cast<double>(dot(tile.q + i * tile.ld_k, key_tile_ + i * p_.d_k, p_.d_k));
      }
    }
    if (to.dq != nullptr) {
      lower_product(n, p_.C, kRows, B_, tile.k, tile.ld_k, p_.d_k, S != nullptr ? T(1) : T(0), key_tile_, p_.d_k);
      store_rows(key_tile_, n, p_.d_k, to.dq, tile.ld_k, to.write_dq);
    }
    if (dS != nullptr) {
      gemm(Op::none, Op::transpose, n, p_.d_k, p_.d_v, T(1), tile.v, tile.ld_v, dS, p_.d_v, T(0), key_tile_, p_.d_k);
      scale_rows(key_tile_, n, p_.d_k, p_.d_k, to_exit_);
      for (std::int64_t j = 0; j < n; ++j) leaving_[j] = dot(tile.k + j * tile.ld_k, key_tile_ + j * p_.d_k, p_.d_k);
    }
    if (to.dk != nullptr) {
      lower_transposed_product(n, p_.C, kRows, B_, tile.q, tile.ld_k, p_.d_k, dS != nullptr ? T(1) : T(0), key_tile_,
                               p_.d_k);
      store_rows(key_tile_, n, p_.d_k, to.dk, tile.ld_k, to.write_dk);
    }
    if (to.dv != nullptr) {
      if (dS != nullptr) {
        gemm(Op::none, Op::none, n, p_.d_v, p_.d_k, T(1), tile.k, tile.ld_k, dS, p_.d_v, T(0), value_tile_, p_.d_v);
        scale_rows(value_tile_, n, p_.d_v, p_.d_v, to_exit_);
      }
      lower_transposed_product(n, p_.C, kRows, A_, to.d_o, tile.ld_v, p_.d_v, dS != nullptr ? T(1) : T(0), value_tile_,
                               p_.d_v);
      store_rows(value_tile_, n, p_.d_v, to.dv, tile.ld_v, to.write_dv);
    }
    if (to.dg != nullptr) gate_gradient(n, S, dS, to);
  }

 private:
  static constexpr std::int64_t kRows = GatedLinearCpuPolicy::kRowBlock;

  void carve(Carver<T>& carver) {
    A_ = carver.take(p_.C * p_.C);
    B_ = carver.take(p_.C * p_.C);
    key_tile_ = carver.take(p_.C * p_.d_k);
    value_tile_ = carver.take(p_.C * p_.d_v);
    own_from_entry_ = carver.take(p_.C);
    own_to_exit_ = carver.take(p_.C);
    row_ = carver.take(p_.C);
    leaving_ = carver.take(p_.C);
    // Room for C doubles whatever T is; pieces are aligned to cache lines.
    const auto doubles = [&] {
      return reinterpret_cast<double*>(carver.take(p_.C * static_cast<std::int64_t>(sizeof(double) / sizeof(T))));
    };
    sums_ = doubles();
    crossing_ = doubles();
    size_ = carver.used();
  }

  static std::int64_t block_end(std::int64_t i, std::int64_t n) { return std::min(n, (i / kRows + 1) * kRows); }

  // e^{G_i - G_j} for j = 0..i.
  const T* decay_row(std::int64_t i) {
    if constexpr (kKind == DecayKind::constant) return backward_powers_ + p_.C - i;
    for (std::int64_t j = 0; j <= i; ++j) row_[j] = fast_exp(static_cast<T>(sums_[i] - sums_[j]));
    return row_;
  }

  static void scale_rows(T* rows, std::int64_t n, std::int64_t width, std::int64_t ld, const T* factors) {
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t x = 0; x < width; ++x) rows[i * ld + x] *= factors[i];
    }
  }
  static void copy_scaled(const T* rows, std::int64_t n, std::int64_t width, std::int64_t ld, const T* factors,
                          T factor, T* to) {
    for (std::int64_t i = 0; i < n; ++i) {
      const T f = factors[i] * factor;
      for (std::int64_t x = 0; x < width; ++x) to[i * width + x] = rows[i * ld + x] * f;
    }
  }

  // A = Q K^T -> P = scale A D;  B = dO V^T -> scale B D, lower triangles. With a trained decay also the row minus the
  // column sums of P * dP below the diagonal: what the decays between i and j < i receive. The diagonal is left out
  // exactly, because for fast gates everything else is far smaller; the sums are in fp64, because what is rounded in a
  // late token's would stay in the gradients of all earlier ones.
  void mask_pair(std::int64_t n, T scale) {
    std::fill(crossing_, crossing_ + n, 0.0);
    for (std::int64_t i = 0; i < n; ++i) {
      T* a = A_ + i * p_.C;
      T* b = B_ + i * p_.C;
      const T* w = decay_row(i);
      if constexpr (kKind == DecayKind::scalar) {
        double sum = 0.0;
#pragma omp simd reduction(+ : sum)
        for (std::int64_t j = 0; j < i; ++j) {
          const auto m = static_cast<double>(scale * w[j] * a[j] * b[j]);
          sum += m;
          crossing_[j] -= m;
        }
        crossing_[i] += sum;
      }
      for (std::int64_t j = 0; j <= i; ++j) {
        const T f = scale * w[j];
        a[j] *= f;
        b[j] *= f;
      }
      for (std::int64_t j = i + 1; j < block_end(i, n); ++j) a[j] = b[j] = 0;
    }
  }

  // dg_t: pairs (i >= t > j), what queries i >= t read of the entry state, what keys j < t leave in the exit state, and
  // the entry state that is still alive at the exit. Local to the chunk: no sum over the whole document cancels.
  void gate_gradient(std::int64_t n, const T* S, const T* dS, const ChunkGradients<T>& to) {
    double* dg = sums_;  // the sums of g are no longer needed
    double suffix =
        S != nullptr && dS != nullptr ? static_cast<double>(fast_exp(total_) * dot(S, dS, p_.d_k * p_.d_v)) : 0.0;
    for (std::int64_t t = n - 1; t >= 0; --t) dg[t] = suffix += crossing_[t];
    double prefix = 0.0;
    for (std::int64_t t = 0; t < n; ++t) {
      store(to.dg[t * p_.H], static_cast<T>(dg[t] + prefix), to.write_dg);
      if (dS != nullptr) prefix += static_cast<double>(leaving_[t]);
    }
  }

  const GatedLinearProblem& p_;
  const T* tables_;
  std::int64_t size_ = 0;
  T *A_, *B_, *key_tile_, *value_tile_, *own_from_entry_, *own_to_exit_, *row_, *leaving_;
  double *sums_, *crossing_;
  const T *powers_ = nullptr, *backward_powers_ = nullptr;
  const T *from_entry_ = nullptr, *to_exit_ = nullptr;  // e^{G_i}, e^{G_n - G_i}
  T total_ = 0;                                         // G_n
};

}  // namespace weft
