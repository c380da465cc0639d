// One chunk of one head as the CPU kernels see it.
#pragma once

#include <cmath>

#include "autograd/carver.h"
#include "autograd/vec_math.h"
#include "modules/families/gated_linear/gated_linear.h"
#include "modules/families/triangular_products.h"

namespace weft {

// n tokens; rows of q, k (of their features, with a map) are ld_k elements apart, those of v, o, d_o ld_v.
template <class T>
struct ChunkTile {
  ChunkTile(const GatedLinearProblem& p, const Chunk& chunk, std::int64_t head)
      : n(chunk.end - chunk.begin),
        h(head),
        ld_k(p.key_heads() * p.stored_key_width()),
        ld_v(p.H * p.d_v),
        key_offset((chunk.begin * p.key_heads() + head / p.heads_per_key()) * p.stored_key_width()),
        value_offset((chunk.begin * p.H + head) * p.d_v),
        gate_offset(chunk.begin * p.H + head),
        q(static_cast<const T*>(p.q) + key_offset),
        k(static_cast<const T*>(p.k) + key_offset),
        v(static_cast<const T*>(p.v) + value_offset) {}

  std::int64_t n, h, ld_k, ld_v;
  std::int64_t key_offset, value_offset, gate_offset;  // first element in [T,H_k,d_k], [T,H,d_v], [T,H]
  const T *q, *k, *v;
};

// The decay of a state by e^G. A factor close to 1 that comes again and again repeats its rounding: over 1000 chunks of
// a slow head, the last digit of fp32 grows to 3e-5. What such a factor takes away, 1 - e^G, keeps all its digits.
template <class T>
struct StateDecay {
  explicit StateDecay(T G) : kept(fast_exp(G)), lost(kept > T(0.5) ? -std::expm1(G) : T(1)) {}

  // e^G s + u
  T advance(T s, T u) const { return kept > T(0.5) ? s + std::fma(-lost, s, u) : std::fma(kept, s, u); }

  T kept, lost;  // `lost` of slow decays only
};

// Where the gradients of one chunk go; rows as in the tile. Null: not wanted.
template <class T>
struct ChunkGradients {
  ChunkGradients(const GatedLinearBackward& a, const ChunkTile<T>& tile)
      : d_o(static_cast<const T*>(a.d_o) + tile.value_offset),
        dq(at(a.dq, tile.key_offset)),
        dk(at(a.dk, tile.key_offset)),
        dv(at(a.dv, tile.value_offset)),
        dg(at(a.dg, a.kind == DecayKind::vector ? tile.key_offset : tile.gate_offset)),
        write_dq(a.write_dq),
        write_dk(a.write_dk),
        write_dv(a.write_dv),
        write_dg(a.write_dg) {}

  const T* d_o;
  T *dq, *dk, *dv, *dg;
  Write write_dq, write_dk, write_dv, write_dg;

 private:
  static T* at(void* base, std::int64_t offset) { return base == nullptr ? nullptr : static_cast<T*>(base) + offset; }
};

}  // namespace weft
