// One chunk of one value head as the CPU kernels see it, and what its decays make of it.
//
// n tokens of the chunk, C chunk length, D = d_k key channels, G_i inclusive sum of g.
#pragma once

#include "autograd/carver.h"
#include "modules/families/delta_rule/delta_rule.h"
#include "modules/families/delta_rule/delta_rule_policy.h"

namespace weft {

// Rows of q, k are ld_k elements apart, those of v, o ld_v, those of a channel decay ld_g, those of beta and a scalar
// decay H.
template <class T>
struct DeltaTile {
  DeltaTile(const DeltaRuleProblem& p, const Chunk& chunk, std::int64_t head)
      : n(chunk.end - chunk.begin),
        first_of_group(head % (p.H / p.H_K) == 0),
        last_of_group((head + 1) % (p.H / p.H_K) == 0),
        ld_k(p.H_K * p.d_k),
        ld_v(p.H * p.d_v),
        ld_g(p.H * p.d_k),
        key_offset((chunk.begin * p.H_K + head / (p.H / p.H_K)) * p.d_k),
        value_offset((chunk.begin * p.H + head) * p.d_v),
        channel_offset((chunk.begin * p.H + head) * p.d_k),
        head_offset(chunk.begin * p.H + head),
        q(static_cast<const T*>(p.q) + key_offset),
        k(static_cast<const T*>(p.k) + key_offset),
        v(static_cast<const T*>(p.v) + value_offset),
        beta(static_cast<const T*>(p.beta) + head_offset) {}

  std::int64_t n;
  bool first_of_group, last_of_group;  // among the value heads of a key head
  std::int64_t ld_k, ld_v, ld_g;
  // First element in [T,H_K,d_k], [T,H,d_v], [T,H,d_k], [T,H].
  std::int64_t key_offset, value_offset, channel_offset, head_offset;
  const T *q, *k, *v, *beta;
};

// Which operands a pass needs: the states follow from the keys alone.
enum class DeltaOperandSet : std::uint8_t { keys, all };

// What does not depend on the state. A and P have C columns; right of the diagonal they are zero to the end of the
// row's block. The others are contiguous.
template <class T>
struct DeltaOperands {
  DeltaOperands(Carver<T>& carver, const DeltaRuleProblem& p) {
    A = carver.take(p.C * p.C);
    P = carver.take(p.C * p.C);
    k_entry = carver.take(p.C * p.d_k);
    k_exit = carver.take(p.C * p.d_k);
    q_entry = carver.take(p.C * p.d_k);
    total = carver.take(p.d_k);
    W = carver.take(p.C * p.d_v);
    U = carver.take(p.C * p.d_v);
  }

  T* A;        // [n, C]  sum_x K_ix K_jx e^{G_ix - G_jx} for j < i
  T* P;        // [n, C]  scale sum_x Q_ix K_jx e^{G_ix - G_jx} for j <= i; `all` only
  T* k_entry;  // [n, D]  K e^G: keys as they read the entry state
  T* k_exit;   // [n, D]  K e^{G_n - G}: keys as they are left in the exit state
  T* q_entry;  // [n, D]  scale Q e^G; `all` only
  T* total;    // [D]     e^{G_n}
  T* W;        // [n, d_v] prediction errors v_t - k_t S~_t: filled by the walk over the states
  T* U;        // [n, d_v] beta W: the u_t
};

// The same for a chunk of the backward pass.
template <class T>
struct DeltaGradientOperands : DeltaOperands<T> {
  DeltaGradientOperands(Carver<T>& carver, const DeltaRuleProblem& p) : DeltaOperands<T>(carver, p) {
    Y = carver.take(p.C * p.d_v);
    dR = carver.take(p.C * p.d_v);
    dS = carver.take(p.d_k * p.d_v);
  }

  T* Y;   // [n, d_v] gradients of the u_t, everything later included
  T* dR;  // [n, d_v] beta Y: the gradients of the values
  T* dS;  // [D, d_v] gradient of the exit state
};

// Where the gradients of one chunk go; rows as in the tile. Null: not wanted.
template <class T>
struct DeltaGradients {
  DeltaGradients(const DeltaRuleBackward& a, const DeltaTile<T>& tile)
      : d_o(static_cast<const T*>(a.d_o) + tile.value_offset),
        dq(at(a.dq, tile.key_offset)),
        dk(at(a.dk, tile.key_offset)),
        dv(at(a.dv, tile.value_offset)),
        dg(at(a.dg, a.decay == DeltaDecay::channel ? tile.channel_offset : tile.head_offset)),
        dbeta(at(a.dbeta, tile.head_offset)),
        write_dq(a.write_dq),
        write_dk(a.write_dk),
        write_dv(a.write_dv),
        write_dg(a.write_dg),
        write_dbeta(a.write_dbeta) {}

  const T* d_o;
  T *dq, *dk, *dv, *dg, *dbeta;
  Write write_dq, write_dk, write_dv, write_dg, write_dbeta;

 private:
  static T* at(void* base, std::int64_t offset) { return base == nullptr ? nullptr : static_cast<T*>(base) + offset; }
};

}  // namespace weft
