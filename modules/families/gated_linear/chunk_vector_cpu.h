// Chunks of the vector decay kind. e^{G_i - G_j} differs between channels, so it must be split into a factor of row i
// and one of row j, and e^{-G} may overflow. Blocks are therefore halved again and again: rows I of a second half and
// rows J of the first half next to it take the boundary between them as reference,
//
//   P_IJ = scale (Q_I e^{G_I - G_b}) (K_J e^{G_b - G_J})^T,   b = last row of J,
//
// so every factor is <= 1 for any gate, every pair i > j belongs to exactly one level, and the factors of a level
// follow from those of the level below by one product with a block's decay.
//
// n tokens of a chunk, C chunk length, S state at entry, dS gradient of the state at exit, G_i inclusive sum of g.
#pragma once

#include "modules/families/gated_linear/chunk_tile.h"
#include "modules/families/gated_linear/gated_linear_policy.h"

namespace weft {

template <class T>
class VectorDecayChunk {
 public:
  VectorDecayChunk(const GatedLinearProblem& p, T* scratch, const T*) : p_(p), D_(p.d_k) {
    Carver<T> carver(scratch);
    carve(carver);
  }
  static std::int64_t scratch_elements(const GatedLinearProblem& p) {
    VectorDecayChunk counting(p, nullptr, nullptr);
    return counting.size_;
  }

  // Decays of the chunk; before contribution() and gradient_contribution().
  void prepare(const ChunkTile<T>& tile) {
    walk_levels(tile, [](std::int64_t, std::int64_t, std::int64_t) {});
  }

  // The factor by which the chunk multiplies row x of the state.
  T decay(std::int64_t x) const { return total_[x]; }

  // o = scale (Q e^G) S + P V. S may be null (zero). Leaves the decays prepared.
  void outputs(const ChunkTile<T>& tile, const T* S, T* o) {
    scores(tile, [](std::int64_t, std::int64_t, std::int64_t) {});
    if (S != nullptr) {
      multiply(tile.q, tile.ld_k, from_entry_, 0, tile.n, X_);
      gemm(Op::none, Op::none, tile.n, p_.d_v, D_, static_cast<T>(p_.scale), X_, D_, S, p_.d_v, T(0), o, tile.ld_v);
    }
    lower_product(tile.n, p_.C, kRows, P_, tile.v, tile.ld_v, p_.d_v, S != nullptr ? T(1) : T(0), o, tile.ld_v);
  }

  // U = (K e^{G_n - G})^T V: what the chunk adds to the decayed state.
  void contribution(const ChunkTile<T>& tile, T* U) {
    multiply(tile.k, tile.ld_k, to_exit_, 0, tile.n, X_);
    gemm(Op::transpose, Op::none, D_, p_.d_v, tile.n, T(1), X_, D_, tile.v, tile.ld_v, T(0), U, p_.d_v);
  }

  // W = scale (Q e^G)^T dO: what the chunk adds to the decayed gradient of the state.
  void gradient_contribution(const ChunkTile<T>& tile, const ChunkGradients<T>& to, T* W) {
    multiply(tile.q, tile.ld_k, from_entry_, 0, tile.n, X_);
    gemm(Op::transpose, Op::none, D_, p_.d_v, tile.n, static_cast<T>(p_.scale), X_, D_, to.d_o, tile.ld_v, T(0), W,
         p_.d_v);
  }

  // Gradients of the chunk's inputs. S and dS may be null (zero). Leaves the decays prepared.
  void gradients(const ChunkTile<T>& tile, const T* S, const T* dS, const ChunkGradients<T>& to) {
    const std::int64_t n = tile.n;
    const auto scale = static_cast<T>(p_.scale);
    lower_scores(n, p_.C, kRows, scale, to.d_o, tile.ld_v, tile.v, tile.ld_v, p_.d_v, dP_);
    std::fill(dq_tile_, dq_tile_ + n * D_, T(0));
    std::fill(dk_tile_, dk_tile_ + n * D_, T(0));
    scores(tile,
           [&](std::int64_t first, std::int64_t middle, std::int64_t end) { block_gradients(first, middle, end); });

    if (S != nullptr) {
      gemm(Op::none, Op::transpose, n, D_, p_.d_v, scale, to.d_o, tile.ld_v, S, p_.d_v, T(0), X_, D_);
      for (std::int64_t e = 0; e < n * D_; ++e) dq_tile_[e] += X_[e] * from_entry_[e];
    }
    if (dS != nullptr) {
      gemm(Op::none, Op::transpose, n, D_, p_.d_v, T(1), tile.v, tile.ld_v, dS, p_.d_v, T(0), X_, D_);
      for (std::int64_t e = 0; e < n * D_; ++e) X_[e] *= to_exit_[e];
    } else {
      std::fill(X_, X_ + n * D_, T(0));
    }
    if (to.dg != nullptr) gate_gradient(tile, S, dS, to);
    store_query_key(tile, to);

    if (to.dv != nullptr) {
      if (dS != nullptr) {
        multiply(tile.k, tile.ld_k, to_exit_, 0, n, X_);
        gemm(Op::none, Op::none, n, p_.d_v, D_, T(1), X_, D_, dS, p_.d_v, T(0), value_tile_, p_.d_v);
      }
      lower_transposed_product(n, p_.C, kRows, P_, to.d_o, tile.ld_v, p_.d_v, dS != nullptr ? T(1) : T(0), value_tile_,
                               p_.d_v);
      store_rows(value_tile_, n, p_.d_v, to.dv, tile.ld_v, to.write_dv);
    }
  }

 private:
  static constexpr std::int64_t kRows = GatedLinearCpuPolicy::kRowBlock;
  static constexpr std::int64_t kGemmBlock = GatedLinearCpuPolicy::kGemmBlock;

  void carve(Carver<T>& carver) {
    const std::int64_t tile = p_.C * D_;
    P_ = carver.take(p_.C * p_.C);
    dP_ = carver.take(p_.C * p_.C);
    from_entry_ = carver.take(tile);
    to_exit_ = carver.take(tile);
    sums_ = carver.take(tile);
    X_ = carver.take(tile);
    dq_tile_ = carver.take(tile);
    dk_tile_ = carver.take(tile);
    block_ = carver.take(tile);
    total_ = carver.take(D_);
    row_ = carver.take(D_);
    value_tile_ = carver.take(p_.C * p_.d_v);
    size_ = carver.used();
  }

  // to rows [begin, end) = rows * factors; `rows` ld apart, the others contiguous.
  void multiply(const T* rows, std::int64_t ld, const T* factors, std::int64_t begin, std::int64_t end, T* to) const {
    for (std::int64_t i = begin; i < end; ++i) {
      for (std::int64_t x = 0; x < D_; ++x) to[i * D_ + x] = rows[i * ld + x] * factors[i * D_ + x];
    }
  }

  // Doubles blocks from single rows to the whole chunk. At each level and for each pair of neighbours J = [first,
  // middle), I = [middle, end): visit(first, middle, end) sees from_entry_ = e^{sum of g from middle to i, inclusive}
  // on I and to_exit_ = e^{sum of g after j, before middle} on J. At the end they are e^{G_i} and e^{G_n - G_j}.
  template <class Visit>
  void walk_levels(const ChunkTile<T>& tile, Visit&& visit) {
    const std::int64_t n = tile.n;
    const std::int64_t ld_g = p_.H * D_;
    const T* g = static_cast<const T*>(p_.g) + tile.key_offset;
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t x = 0; x < D_; ++x) {
        sums_[i * D_ + x] = g[i * ld_g + x];
        from_entry_[i * D_ + x] = fast_exp(g[i * ld_g + x]);
        to_exit_[i * D_ + x] = T(1);
      }
    }
    for (std::int64_t b = 1; b < n; b *= 2) {
      for (std::int64_t first = 0; first + b < n; first += 2 * b) {
        const std::int64_t middle = first + b;
        const std::int64_t end = std::min(n, middle + b);
        visit(first, middle, end);
        join(first, middle, end);
      }
    }
    for (std::int64_t x = 0; x < D_; ++x) total_[x] = fast_exp(sums_[x]);
  }

  // Row `first` of sums_ holds the sum of g over the block that starts there. Block decays come from sums, not from
  // products of products, so that rounding does not grow with the length.
  void join(std::int64_t first, std::int64_t middle, std::int64_t end) {
    T* sum_J = sums_ + first * D_;
    const T* sum_I = sums_ + middle * D_;
    for (std::int64_t x = 0; x < D_; ++x) row_[x] = fast_exp(sum_J[x]);
    for (std::int64_t i = middle; i < end; ++i) {
      for (std::int64_t x = 0; x < D_; ++x) from_entry_[i * D_ + x] *= row_[x];
    }
    for (std::int64_t x = 0; x < D_; ++x) row_[x] = fast_exp(sum_I[x]);
    for (std::int64_t j = first; j < middle; ++j) {
      for (std::int64_t x = 0; x < D_; ++x) to_exit_[j * D_ + x] *= row_[x];
    }
    for (std::int64_t x = 0; x < D_; ++x) sum_J[x] += sum_I[x];
  }

  // P = lower triangle of scale sum_x Q_ix K_jx e^{G_ix - G_jx}, zero right of the diagonal; `visit` is called for each
  // pair of blocks while X_ holds its decayed rows: keys in [first, middle), queries in [middle, end).
  template <class Visit>
  void scores(const ChunkTile<T>& tile, Visit&& visit) {
    const auto scale = static_cast<T>(p_.scale);
    for (std::int64_t i = 0; i < tile.n; ++i) {
      P_[i * p_.C + i] = scale * dot(tile.q + i * tile.ld_k, tile.k + i * tile.ld_k, D_);
      std::fill(P_ + i * p_.C + i + 1, P_ + i * p_.C + std::min(tile.n, (i / kRows + 1) * kRows), T(0));
    }
    walk_levels(tile, [&](std::int64_t first, std::int64_t middle, std::int64_t end) {
      multiply(tile.k, tile.ld_k, to_exit_, first, middle, X_);
      multiply(tile.q, tile.ld_k, from_entry_, middle, end, X_);
      if (middle - first >= kGemmBlock) {
        gemm(Op::none, Op::transpose, end - middle, middle - first, D_, scale, X_ + middle * D_, D_, X_ + first * D_,
             D_, T(0), P_ + middle * p_.C + first, p_.C);
      } else {
        for (std::int64_t i = middle; i < end; ++i) {
          for (std::int64_t j = first; j < middle; ++j) P_[i * p_.C + j] = scale * dot(X_ + i * D_, X_ + j * D_, D_);
        }
      }
      visit(first, middle, end);
    });
  }

  // What the pairs of one block give to the gradients of its queries and keys. dP_ includes the scale.
  void block_gradients(std::int64_t first, std::int64_t middle, std::int64_t end) {
    const std::int64_t rows_I = end - middle;
    const std::int64_t rows_J = middle - first;
    const T* dP = dP_ + middle * p_.C + first;
    if (rows_J >= kGemmBlock) {
      gemm(Op::none, Op::none, rows_I, D_, rows_J, T(1), dP, p_.C, X_ + first * D_, D_, T(0), block_ + middle * D_, D_);
      gemm(Op::transpose, Op::none, rows_J, D_, rows_I, T(1), dP, p_.C, X_ + middle * D_, D_, T(0), block_ + first * D_,
           D_);
    } else {
      std::fill(block_ + first * D_, block_ + end * D_, T(0));
      for (std::int64_t i = 0; i < rows_I; ++i) {
        for (std::int64_t j = 0; j < rows_J; ++j) {
          const T w = dP[i * p_.C + j];
          const T* query = X_ + (middle + i) * D_;
          const T* key = X_ + (first + j) * D_;
          T* to_query = block_ + (middle + i) * D_;
          T* to_key = block_ + (first + j) * D_;
          for (std::int64_t x = 0; x < D_; ++x) to_query[x] += w * key[x];
          for (std::int64_t x = 0; x < D_; ++x) to_key[x] += w * query[x];
        }
      }
    }
    for (std::int64_t e = middle * D_; e < end * D_; ++e) dq_tile_[e] += block_[e] * from_entry_[e];
    for (std::int64_t e = first * D_; e < middle * D_; ++e) dk_tile_[e] += block_[e] * to_exit_[e];
  }

  // dg_t, per channel: pairs (i >= t > j), what queries i >= t read of the entry state, what keys j < t leave in the
  // exit state (X_), and the entry state that is still alive at the exit. The diagonal pairs are not in the tiles yet:
  // they cross no decay, and for fast gates everything else is far smaller.
  void gate_gradient(const ChunkTile<T>& tile, const T* S, const T* dS, const ChunkGradients<T>& to) {
    const std::int64_t n = tile.n;
    T* suffixes = block_;
    for (std::int64_t x = 0; x < D_; ++x) {
      row_[x] = S != nullptr && dS != nullptr ? total_[x] * dot(S + x * p_.d_v, dS + x * p_.d_v, p_.d_v) : T(0);
    }
    for (std::int64_t t = n - 1; t >= 0; --t) {
      const T* q = tile.q + t * tile.ld_k;
      const T* k = tile.k + t * tile.ld_k;
      for (std::int64_t x = 0; x < D_; ++x) {
        row_[x] += q[x] * dq_tile_[t * D_ + x] - k[x] * dk_tile_[t * D_ + x];
        suffixes[t * D_ + x] = row_[x];
      }
    }
    std::fill(row_, row_ + D_, T(0));
    for (std::int64_t t = 0; t < n; ++t) {
      const T* k = tile.k + t * tile.ld_k;
      for (std::int64_t x = 0; x < D_; ++x) {
        store(to.dg[t * tile.ld_k + x], suffixes[t * D_ + x] + row_[x], to.write_dg);
        row_[x] += k[x] * X_[t * D_ + x];
      }
    }
  }

  // dq and dk: the tiles, the diagonal pairs, and for keys what they left in the exit state (X_).
  void store_query_key(const ChunkTile<T>& tile, const ChunkGradients<T>& to) const {
    for (std::int64_t i = 0; i < tile.n; ++i) {
      const T diagonal = dP_[i * p_.C + i];
      const T* q = tile.q + i * tile.ld_k;
      const T* k = tile.k + i * tile.ld_k;
      const std::int64_t e = i * D_;
      if (to.dq != nullptr) {
        T* dq = to.dq + i * tile.ld_k;
        for (std::int64_t x = 0; x < D_; ++x) store(dq[x], dq_tile_[e + x] + diagonal * k[x], to.write_dq);
      }
      if (to.dk != nullptr) {
        T* dk = to.dk + i * tile.ld_k;
        for (std::int64_t x = 0; x < D_; ++x) {
          store(dk[x], dk_tile_[e + x] + (X_[e + x] + diagonal * q[x]), to.write_dk);
        }
      }
    }
  }

  const GatedLinearProblem& p_;
  std::int64_t D_;  // d_k
  std::int64_t size_ = 0;
  T *P_, *dP_;                     // [C, C]
  T *from_entry_, *to_exit_;       // [C, d_k] decays from the start and to the end of a row's block
  T* sums_;                        // [C, d_k]
  T *X_, *block_;                  // [C, d_k]
  T *dq_tile_, *dk_tile_;          // [C, d_k]
  T *total_, *row_, *value_tile_;  // [d_k], [d_k], [C, d_v]
};

}  // namespace weft
