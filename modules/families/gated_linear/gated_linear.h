// The gated linear recurrence (linear attention with decay), one head:
//
//   S_t = diag(e^{g_t}) S_{t-1} + k_t^T v_t        o_t = scale * q_t S_t
//
// evaluated chunk by chunk: inside a chunk as masked attention, between chunks through the matrix state
// (Lightning Attention-2, arXiv:2401.04658; GLA, arXiv:2312.06635). README.md derives the chunked forms.
//
// With a feature map phi, phi(q_t) and phi(k_t) stand for q_t and k_t; they are built chunk by chunk, in cache, and
// never exist for a whole row. Adjacent heads may share queries and keys: head h reads those of h / (H/H_k).
//
// T tokens of the packed row, N documents, H heads, H_k heads of queries and keys, d_k and d_v head widths of keys and
// values, C chunk length. q, k [T,H_k,d_k]; v, o [T,H,d_v]; states [N,H,d_k,d_v], rows are key channels. Log decays
// g <= 0, natural logarithm.
#pragma once

#include "autograd/documents.h"
#include "autograd/ops/feature_map/feature_map.h"

namespace weft {

// What the log decay varies over; the shape of the decay tensor tells which.
enum class DecayKind : std::uint8_t {
  constant,  // [H]: not trained
  scalar,    // [T,H]
  vector,    // [T,H,d_k]
};

// How the chunks of a sequence are walked; the results are the same bits.
enum class ChunkSchedule : std::uint8_t {
  automatic,
  fused,      // one walk per document and head: for many documents or heads
  two_level,  // states of all chunks of a window in parallel, combined in order, then their outputs in parallel
};

// What forward and backward share. The tables are in the memory of the device.
struct GatedLinearProblem {
  DType dtype;
  DecayKind kind;
  ChunkSchedule schedule;
  std::int64_t T, N, H, d_k, d_v;
  std::int64_t C;
  double scale;
  const void* q;                        // [T, H_k, d_k]
  const void* k;                        // [T, H_k, d_k]
  const void* v;                        // [T, H, d_v]
  const void* g;                        // [H] | [T, H] | [T, H, d_k]
  const void* s0;                       // [N, H, d_k, d_v] or null: zero
  const std::int32_t* cu_seqlens;       // [N + 1]
  const Chunk* chunks;                  // [chunk_count], blocks of C tokens
  const std::int32_t* document_offset;  // [N + 1] first chunk of each document
  std::int64_t chunk_count;
  std::int64_t H_k = 0;  // a divisor of H; 0: H
  // With a map, q and k are [T, H_k, D_x] and d_k is the width of their features.
  FeatureMap map = FeatureMap::identity;
  std::int64_t D_x = 0;

  std::int64_t key_heads() const { return H_k == 0 ? H : H_k; }
  std::int64_t heads_per_key() const { return H / key_heads(); }
  std::int64_t stored_key_width() const { return map == FeatureMap::identity ? d_k : D_x; }
};

struct GatedLinearForward : GatedLinearProblem {
  void* o = nullptr;   // [T, H, d_v]
  void* st = nullptr;  // [N, H, d_k, d_v] final states
};

// A null gradient is not wanted. Entry states of the chunks are computed again, nothing but the inputs is saved.
struct GatedLinearBackward : GatedLinearProblem {
  const void* d_o = nullptr;  // [T, H, d_v]
  const void* dst = nullptr;  // [N, H, d_k, d_v] or null: zero
  void* dq = nullptr;
  Write write_dq = Write::overwrite;
  void* dk = nullptr;
  Write write_dk = Write::overwrite;
  void* dv = nullptr;
  Write write_dv = Write::overwrite;
  void* dg = nullptr;  // shape of g; never for a constant decay
  Write write_dg = Write::overwrite;
  void* ds0 = nullptr;
  Write write_ds0 = Write::overwrite;
};

// One token of each of N sequences; the state is updated in place.
struct GatedLinearDecode {
  DType dtype;
  DecayKind kind;
  std::int64_t N, H, H_k, d_k, d_v;
  double scale;
  const void* q;  // [N, H_k, d_k]
  const void* k;  // [N, H_k, d_k]
  const void* v;  // [N, H, d_v]
  const void* g;  // [H] | [N, H] | [N, H, d_k]
  void* state;    // [N, H, d_k, d_v]
  void* o;        // [N, H, d_v]
};

std::size_t gated_linear_forward_workspace(const GatedLinearForward& args);
std::size_t gated_linear_backward_workspace(const GatedLinearBackward& args);

struct GatedLinearOutput {
  Var o;            // [T, H, d_v]
  Var final_state;  // [N, H, d_k, d_v], unless the plan does without
};

// What the caller may fix instead of the policy; for tests and benchmarks, on the CPU. chunk = 0: the policy's length.
struct GatedLinearPlan {
  std::int64_t chunk = 0;
  ChunkSchedule schedule = ChunkSchedule::automatic;
  bool final_state = true;  // whether it is wanted
};

// Chunk length C of the policy on the CPU.
std::int64_t gated_linear_chunk(DecayKind kind);

// `decay` is [H], [T,H] or, unless heads share keys, [T,H,d_k], <= 0; gradients reach q, k, v, the initial state and a
// decay that depends on the token. An `initial_state` without a value ({}) is zero.
GatedLinearOutput gated_linear(Tape& tape, const Var& q, const Var& k, const Var& v, const Var& decay,
                               const Var& initial_state, const DocumentsPtr& documents, double scale,
                               const GatedLinearPlan& plan = {});
// The same on features: q, k [T,H_k,D_x]; `decay` is constant; states have d_k = feature_width(map, D_x).
GatedLinearOutput gated_linear(Tape& tape, FeatureMap map, const Var& q, const Var& k, const Var& v, const Var& decay,
                               const Var& initial_state, const DocumentsPtr& documents, double scale,
                               const GatedLinearPlan& plan = {});

// q, k [N,H_k,d_k], v [N,H,d_v], decay [H], [N,H] or [N,H,d_k]; advances `state` [N,H,d_k,d_v] by one token and returns
// o [N,H,d_v]. Nothing is recorded.
Tensor gated_linear_decode(Tape& tape, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& decay,
                           const Tensor& state, double scale);

}  // namespace weft
