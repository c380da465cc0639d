// Chunks of the vector decay kind: scores, and their gradients, block by block as channel_decays.h halves the chunk.
//
// n tokens of a chunk, C chunk length, S state at entry, dS gradient of the state at exit, G_i inclusive sum of g.
#pragma once

#include "modules/families/channel_decays.h"
#include "modules/families/gated_linear/chunk_tile.h"
#include "modules/families/gated_linear/gated_linear_policy.h"

namespace weft {

template <class T>
class VectorDecayChunk {
 public:
  VectorDecayChunk(const GatedLinearProblem& p, T* scratch, const T*) : p_(p), D_(p.d_k), decays_(p.d_k) {
    Carver<T> carver(scratch);
    carve(carver);
  }
  static std::int64_t scratch_elements(const GatedLinearProblem& p) {
    VectorDecayChunk counting(p, nullptr, nullptr);
    return counting.size_;
  }

  // Decays of the chunk; before contribution() and gradient_contribution().
  void prepare(const ChunkTile<T>& tile) {
    walk(tile, [](std::int64_t, std::int64_t, std::int64_t) {});
  }

  // The chunk multiplies row x of the state by e to this.
  T log_decay(std::int64_t x) const { return decays_.log_total()[x]; }

  // o = scale (Q e^G) S + P V. S may be null (zero). Leaves the decays prepared.
  void outputs(const ChunkTile<T>& tile, const T* S, T* o) {
    scores(tile, [](std::int64_t, std::int64_t, std::int64_t) {});
    if (S != nullptr) {
      decays_.multiply(tile.q, tile.ld_k, decays_.from_entry(), 0, tile.n, X_);
      gemm(Op::none, Op::none, tile.n, p_.d_v, D_, static_cast<T>(p_.scale), X_, D_, S, p_.d_v, T(0), o, tile.ld_v);
    }
    lower_product(tile.n, p_.C, kRows, P_, tile.v, tile.ld_v, p_.d_v, S != nullptr ? T(1) : T(0), o, tile.ld_v);
  }

  // U = (K e^{G_n - G})^T V: what the chunk adds to the decayed state.
  void contribution(const ChunkTile<T>& tile, T* U) {
    decays_.multiply(tile.k, tile.ld_k, decays_.to_exit(), 0, tile.n, X_);
    gemm(Op::transpose, Op::none, D_, p_.d_v, tile.n, T(1), X_, D_, tile.v, tile.ld_v, T(0), U, p_.d_v);
  }

  // W = scale (Q e^G)^T dO: what the chunk adds to the decayed gradient of the state.
  void gradient_contribution(const ChunkTile<T>& tile, const ChunkGradients<T>& to, T* W) {
    decays_.multiply(tile.q, tile.ld_k, decays_.from_entry(), 0, tile.n, X_);
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
      for (std::int64_t e = 0; e < n * D_; ++e) dq_tile_[e] += X_[e] * decays_.from_entry()[e];
    }
    if (dS != nullptr) {
      gemm(Op::none, Op::transpose, n, D_, p_.d_v, T(1), tile.v, tile.ld_v, dS, p_.d_v, T(0), X_, D_);
      for (std::int64_t e = 0; e < n * D_; ++e) X_[e] *= decays_.to_exit()[e];
    } else {
      std::fill(X_, X_ + n * D_, T(0));
    }
    if (to.dg != nullptr) gate_gradient(tile, S, dS, to);
    store_query_key(tile, to);

    if (to.dv != nullptr) {
      if (dS != nullptr) {
        decays_.multiply(tile.k, tile.ld_k, decays_.to_exit(), 0, n, X_);
        gemm(Op::none, Op::none, n, p_.d_v, D_, T(1), X_, D_, dS, p_.d_v, T(0), value_tile_, p_.d_v);
      }
      lower_transposed_product(n, p_.C, kRows, P_, to.d_o, tile.ld_v, p_.d_v, dS != nullptr ? T(1) : T(0), value_tile_,
                               p_.d_v);
      store_rows(value_tile_, n, p_.d_v, to.dv, tile.ld_v, to.write_dv);
    }
  }

 private:
  static constexpr std::int64_t kRows = GatedLinearCpuPolicy::kRowBlock;

  void carve(Carver<T>& carver) {
    const std::int64_t tile = p_.C * D_;
    P_ = carver.take(p_.C * p_.C);
    dP_ = carver.take(p_.C * p_.C);
    decays_.carve(carver, p_.C);
    X_ = carver.take(tile);
    dq_tile_ = carver.take(tile);
    dk_tile_ = carver.take(tile);
    block_ = carver.take(tile);
    row_ = carver.take(D_);
    value_tile_ = carver.take(p_.C * p_.d_v);
    size_ = carver.used();
  }

  template <class Visit>
  void walk(const ChunkTile<T>& tile, Visit&& visit) {
    decays_.walk(static_cast<const T*>(p_.g) + tile.key_offset, tile.ld_k, tile.n, visit);
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
    walk(tile, [&](std::int64_t first, std::int64_t middle, std::int64_t end) {
      decays_.multiply(tile.k, tile.ld_k, decays_.to_exit(), first, middle, X_);
      decays_.multiply(tile.q, tile.ld_k, decays_.from_entry(), middle, end, X_);
      block_scores(end - middle, middle - first, D_, scale, X_ + middle * D_, X_ + first * D_,
                   P_ + middle * p_.C + first, p_.C);
      visit(first, middle, end);
    });
  }

  // What the pairs of one block give to the gradients of its queries and keys. dP_ includes the scale.
  void block_gradients(std::int64_t first, std::int64_t middle, std::int64_t end) {
    const std::int64_t rows_I = end - middle;
    const std::int64_t rows_J = middle - first;
    const T* dP = dP_ + middle * p_.C + first;
    block_product(rows_I, rows_J, D_, dP, p_.C, X_ + first * D_, block_ + middle * D_);
    block_transposed_product(rows_I, rows_J, D_, dP, p_.C, X_ + middle * D_, Write::overwrite, block_ + first * D_);
    for (std::int64_t e = middle * D_; e < end * D_; ++e) dq_tile_[e] += block_[e] * decays_.from_entry()[e];
    for (std::int64_t e = first * D_; e < middle * D_; ++e) dk_tile_[e] += block_[e] * decays_.to_exit()[e];
  }

  // dg_t, per channel: pairs (i >= t > j), what queries i >= t read of the entry state, what keys j < t leave in the
  // exit state (X_), and the entry state that is still alive at the exit. The diagonal pairs are not in the tiles yet:
  // they cross no decay, and for fast gates everything else is far smaller.
  void gate_gradient(const ChunkTile<T>& tile, const T* S, const T* dS, const ChunkGradients<T>& to) {
    const std::int64_t n = tile.n;
    T* suffixes = block_;
    for (std::int64_t x = 0; x < D_; ++x) {
      row_[x] =
          S != nullptr && dS != nullptr ? decays_.total()[x] * dot(S + x * p_.d_v, dS + x * p_.d_v, p_.d_v) : T(0);
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
  ChannelDecays<T> decays_;
  T *P_, *dP_;             // [C, C]
  T *X_, *block_;          // [C, d_k]
  T *dq_tile_, *dk_tile_;  // [C, d_k]
  T *row_, *value_tile_;   // [d_k], [C, d_v]
};

}  // namespace weft
