// The stages of the kernels for decays per key channel on tensor cores (README.md, "On the GPU"): what a chunk makes
// before the states are known, the walks over the states (gated_linear_row.cuh), and the gradients of a chunk.
#pragma once

#include "modules/families/gated_linear/gated_linear_levels.cuh"

namespace weft::channels {

// [chunk_count, H] of each.
struct Records {
  bf16 *q_entry, *k_exit;  // [C, d_k]: scale Q e^G, K e^(G_n - G); rows behind the chunk are zero
  bf16* P;                 // [C, C], lower triangular; for walks backwards its transpose
  float* totals;           // [d_k]: e^(G_n)
};

// transposed: P is wanted for a walk backwards.
void make_operands(const GatedLinearProblem& p, bool transposed, const Records& to, const Launch& launch);

// A walk over the states of documents, forwards in time over values or backwards over the gradients of outputs (`z`).
struct StateWalk {
  bool backwards = false;
  const void* z = nullptr;
  const void* before = nullptr;  // [N, H, d_k, d_v] in the walk's direction; null: zero
  void* after = nullptr;         // null: not wanted
  Write write_after = Write::overwrite;
  void* out = nullptr;  // outputs, or the gradients of values; null: not wanted
  Write write = Write::overwrite;
  bf16* kept = nullptr;  // [chunk_count, H, d_k, d_v] the states that each chunk meets, rounded; null: not wanted
};
void walk_states(const GatedLinearProblem& p, const Records& from, const StateWalk& walk, const Launch& launch);

// entries, dexits: [chunk_count, H, d_k, d_v], states before each chunk and gradients of those after it.
void chunk_gradients(const GatedLinearBackward& a, const bf16* entries, const bf16* dexits, const Launch& launch);

}  // namespace weft::channels
